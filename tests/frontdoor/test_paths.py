"""Paths: one spelling for each, taken from the route table, and no way around a key."""

import http.client
from urllib.parse import urlsplit

import openai
import pytest

from frontdoor.app import make_app
from frontdoor.http.auth import OPEN_PATHS, OPEN_PREFIX
from frontdoor.http.paths import canonical_path, names_behind_v1
from tests.services.frontdoor_service import Service

KEYS = "mine\n"
KEY = {"Authorization": "Bearer mine"}
V1_NAMES = frozenset({"chat", "completions", "models"})
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")


def ask(service: Service, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Ask for a path as it is written: other clients tidy it up."""
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def routed_paths(service: Service) -> list[str]:
    paths = make_app(service.settings).openapi()["paths"]
    return [path.replace("{request_id}", "0" * 32).replace("{name}", "tiny") for path in paths]


@pytest.mark.parametrize(
    ("path", "spelled"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/models/", "/v1/models"),
        ("//v1//models//", "/v1/models"),
        ("/models", "/v1/models"),
        ("/models/a/b/", "/v1/models/a/b"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions/", "/v1/completions"),
        ("/v1/v1/models", "/v1/models"),
        ("/v1/v1//v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models/v1/v1", "/v1/models/v1/v1"),
        ("/v1", "/v1"),
        ("/generate/", "/generate"),
        ("/modelsx", "/modelsx"),
        ("/v1/../generate", "/v1/../generate"),
        ("/v1/models/%2Fsrv%2Fmodel", "/v1/models/%2Fsrv%2Fmodel"),
    ],
)
def test_a_path_has_one_spelling(path: str, spelled: str) -> None:
    """Slashes and /v1 are put right; dots and names are left alone."""
    assert canonical_path(path, V1_NAMES) == spelled


def test_names_behind_v1_come_from_the_routes() -> None:
    """A route that is there without /v1 as well keeps its own path."""
    paths = [
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{name}",
        "/generate",
        "/v1/generate",
        "/",
        "/v1",
    ]
    assert names_behind_v1(paths) == {"chat", "models"}


def test_every_spelling_of_a_route_is_that_route(service: Service) -> None:
    """Any method: the same status and headers as under the path of the route table, and never a redirect."""
    for path in routed_paths(service):
        spellings = [f"{path}/", f"/{path}", path.replace("/", "//"), f"{path}//"]
        if path.startswith("/v1/"):
            spellings += [path.removeprefix("/v1"), f"/v1{path}", f"/v1/{path}/", f"//v1/v1{path}"]
        for method in METHODS:
            status, body = ask(service, method, path, KEY)
            for spelling in spellings:
                found = ask(service, method, spelling, KEY)
                assert found[0] == status, (method, spelling)
                assert status not in (301, 302, 307, 308)
                if path in ("/v1/models", "/ui", "/generate"):
                    assert found[1] == body, (method, spelling)


def test_no_spelling_gets_past_the_key(service: Service) -> None:
    """What needs a key under its own path needs one under every other, or is not there."""
    for path in routed_paths(service):
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            continue
        first = f"/%{ord(path[1]):02x}{path[2:]}"
        odd = [path, f"{path}/", f"/{path}", f"/v1{path}", path.removeprefix("/v1"), first, f"/.{path}"]
        for prefix in (
            "/ui",
            "/ui/",
            "/ui/..",
            "/ui/%2e%2e",
            "/ui/%2f",
            "/livez/..",
            "/v1/v1",
            "/%2e",
            "//%2f",
        ):
            odd += [prefix + path, prefix + first]
        odd += [
            "/" + path.replace("/", "%2f"),
            path.replace("/", "/%2f"),
            path.upper(),
            f"{path}%00",
            f"{path};/ui/x",
        ]
        for method in METHODS:
            for spelling in odd:
                status = ask(service, method, spelling)[0]
                is_refused = status == 401 or (status in (404, 405) and spelling.lstrip("/").startswith("ui"))
                assert is_refused, (method, spelling, status)
    assert service.engine.claimed == []


def test_a_client_with_any_base_url_works(service: Service) -> None:
    """With /v1, without it, twice, and with a slash at the end; a folder's name is found with its slashes."""
    for base in ("", "/", "/v1", "/v1/", "/v1/v1", "//v1//"):
        with openai.OpenAI(base_url=service.url + base, api_key="mine", max_retries=0) as client:
            assert [model.id for model in client.models.list().data] == ["tiny"]
            for name in ("tiny", service.settings.model_repo):
                assert client.models.retrieve(name).id == "tiny"
            answer = client.chat.completions.create(
                max_tokens=6, model="tiny", messages=[{"role": "user", "content": "hi"}]
            )
            assert answer.choices[0].finish_reason == "length"
    assert ask(service, "GET", f"/v1/models/{service.settings.model_repo}", KEY)[0] == 200
