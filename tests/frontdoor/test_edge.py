"""Keys, host names, origins and request ids: the same on every route, taken from the route table."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import pytest
from fastapi.responses import StreamingResponse

from config.api_keys import KeysUnreadable
from frontdoor.app import make_app
from frontdoor.http.auth import OPEN_PATHS, OPEN_PREFIX
from frontdoor.http.hosts import LOCAL_NAMES, HostNames, is_allowed_host
from tests.services.frontdoor_service import (
    Service,
    make_client,
    make_settings,
    routes,
    running_service,
    serving,
    serving_app,
)

KEY = "secret-key"
KEYS = f"# one a line\n\nother-key\n  {KEY}  \n"
SETTINGS = {"CORS_ORIGINS": "https://friend.example"}
OWN_PAGE = {"Authorization": f"Bearer {KEY}"}


def test_a_key_is_required_on_every_route_that_is_not_open(service: Service) -> None:
    """Without a key, and with a wrong one, nothing but the open routes answers."""
    for method, path in routes(service):
        is_open = path in OPEN_PATHS or path.startswith(OPEN_PREFIX)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            answer = service.http.request(method, path, headers=headers)
            assert (answer.status_code == 401) == (not is_open), (method, path)
            if not is_open:
                assert "API key" in answer.text
                assert answer.headers["www-authenticate"] == "Bearer"
    assert service.http.get("/nothing").status_code == 401
    assert service.http.get("/openapi.json").status_code == 401


def test_a_key_lets_in_and_owns_what_it_asks(service: Service) -> None:
    """The request carries a digest of the key, never the key."""
    for key in (KEY, "other-key"):
        answer = service.http.post(
            "/generate", json={"prompt": "hi"}, headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 200
    owners = [request.owner for request in service.engine.claimed[-2:]]
    assert owners[0] != owners[1]
    assert all(len(owner) == 16 for owner in owners)


def test_another_host_name_is_refused_on_every_route(service: Service) -> None:
    """A page that gave its own name our address (DNS rebinding) gets a 400."""
    for method, path in routes(service):
        answer = service.http.request(method, path, headers={**OWN_PAGE, "Host": "evil.com"})
        assert answer.status_code == 400, (method, path)
        assert "Host header 'evil.com'" in answer.text
        assert "ALLOWED_HOSTS" in answer.text


LOCAL_HOSTS = (
    "localhost", "LOCALHOST:8100", "localhost.:8100", "api.localhost:8100", "mac.local:8100", "Mac.LOCAL.",
    "127.0.0.1:8100", "[::1]:8100", "192.168.5.1:8100", "[fe80::1]", "[fe80::1%en0]:8100", "mymac",
    "[::ffff:127.0.0.1]:8100", "0.0.0.0:8100", "127.1:8100", "0x7f.1", "host.docker.internal:8100",
    "host.containers.internal", "proxy.example.org", "a.b.example.net", "example.net:443",
)  # fmt: skip
OTHER_HOSTS = (
    "evil.com", "evil.com.", "evil.com:127", "mymac.evil.com", "local", "local.evil.com",
    "host.docker.internal.evil.com", "example.net.evil.com", "example.org", "notexample.net",
    "127.1.evil.com", "127.0.0.1.evil.com", "127.0.0.1:8100@evil.com", "1.2.3.4.5", "0x7f.evil",
    "localhost.evil.com", "localhost:", "localhost:8100:8100", "[::1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("header", "is_allowed"),
    [(host, True) for host in [None, *LOCAL_HOSTS]] + [(host, False) for host in ["", *OTHER_HOSTS]],
)
def test_hosts_are_our_names_and_addresses(header: str | None, is_allowed: bool) -> None:
    """Local names, those that are listed, and any IP address; nothing else."""
    names = HostNames(["MyMac", "*.example.org", ".example.net"])
    assert names.allows(header) is is_allowed


def test_this_machines_own_names_pass_and_no_other_that_dns_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host name, and the full one where it begins with it: a stranger's DNS may answer anything."""
    monkeypatch.setattr("socket.gethostname", lambda: "Ring1")
    for full_name, is_allowed in (("ring1.home.example", True), ("evil.com", False), ("ring1", False)):
        monkeypatch.setattr("socket.getfqdn", lambda _, full_name=full_name: full_name)
        names = HostNames([])
        names._learn_full_name("ring1")
        assert names.allows(full_name) is is_allowed
        names.learn()
        assert names.allows("ring1:8100")


def test_any_host_passes_with_a_star_and_a_broken_one_never() -> None:
    """ALLOWED_HOSTS=* switches the check off; what is no Host header stays refused."""
    assert is_allowed_host("evil.com", LOCAL_NAMES | {"*"})
    assert not is_allowed_host("evil.com:port", LOCAL_NAMES | {"*"})


def test_a_listed_host_is_served_and_its_page_is_our_own(tmp_path: Path) -> None:
    """Behind a proxy the page comes from the proxy's name, and calls that name."""
    with running_service(tmp_path, {"ALLOWED_HOSTS": "Ring.example.org, *.example.net"}) as service:
        for host in (
            "ring.example.org",
            "a.example.net:8443",
            "host.docker.internal:8100",
            "mymac.local:8100",
        ):
            for origin, status in ((f"https://{host}", 200), ("https://evil.com", 403)):
                answer = service.http.get("/v1/models", headers={"Host": host, "Origin": origin})
                assert answer.status_code == status, (host, origin)
        assert service.http.get("/v1/models", headers={"Host": "example.org"}).status_code == 400


def test_another_origin_is_refused_on_every_route(service: Service) -> None:
    """A page of another site cannot use a visitor's browser; our own page and CORS_ORIGINS can."""
    own = service.url
    for method, path in routes(service):
        for origin in ("https://evil.com", "null", "http://localhost.evil.com", "http://["):
            answer = service.http.request(method, path, headers={**OWN_PAGE, "Origin": origin})
            assert answer.status_code == 403, (method, path)
            assert "CORS_ORIGINS" in answer.text
        for origin in (own, "https://friend.example"):
            answer = service.http.request(method, path, headers={**OWN_PAGE, "Origin": origin})
            assert answer.status_code != 403, (method, path)


def test_cors_answers_the_listed_origins_only(service: Service) -> None:
    """A preflight needs no key; errors carry the headers too, so that pages can read them."""
    asking = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-api-key",
        "Access-Control-Request-Private-Network": "true",
    }
    friend = {"Origin": "https://friend.example"}
    answer = service.http.options("/generate", headers={**asking, **friend})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "x-api-key" in answer.headers["access-control-allow-headers"]
    refused = service.http.post("/generate", json={"prompt": "hi"}, headers=friend)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://friend.example"
    stranger = service.http.options("/generate", headers={**asking, "Origin": "https://evil.com"})
    assert "access-control-allow-origin" not in stranger.headers


def test_every_answer_has_a_request_id(service: Service) -> None:
    """A sane one is taken, another replaced; errors have one as well."""
    for path in ("/", "/livez", "/nothing", "/generate"):
        assert len(service.http.get(path).headers["x-request-id"]) == 32
        mine = service.http.get(path, headers={"X-Request-Id": "my-id_1.2:3"})
        assert mine.headers["x-request-id"] == "my-id_1.2:3"
        for odd in ("a b", "x" * 129, "<script>"):
            other = service.http.get(path, headers={"X-Request-Id": odd})
            assert len(other.headers["x-request-id"]) == 32


def test_a_clients_request_id_never_names_the_request(service: Service) -> None:
    """Two requests under one X-Request-Id are two requests."""
    headers = {**OWN_PAGE, "X-Request-Id": "f" * 32}
    answers = [service.http.post("/generate", json={"prompt": "hi"}, headers=headers) for _ in range(2)]
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 2
    assert "f" * 32 not in ids


def test_a_keys_file_without_keys_stops_the_start(tmp_path: Path) -> None:
    """An empty file must not mean that everybody is let in."""
    (tmp_path / "keys").write_text("# none yet\n")
    settings = make_settings(tmp_path, {"API_KEYS_FILE": str(tmp_path / "keys")})
    with pytest.raises(KeysUnreadable, match="holds no key"):
        make_app(settings)


def test_without_a_keys_file_any_key_is_accepted(tmp_path: Path) -> None:
    """Clients that always send a key work when none is asked for."""
    with serving(make_settings(tmp_path)) as url, make_client(url) as http:
        answer = http.get("/v1/models", headers={"Authorization": "Bearer whatever"})
        assert answer.status_code == 200


def serving_crash(folder: Path, crash: Callable[[], Awaitable[object]]) -> AbstractContextManager[str]:
    """Serve the front door with one route more."""
    settings = make_settings(folder)
    app = make_app(settings)
    app.get("/crash", response_model=None)(crash)
    return serving_app(app, settings)


def test_a_crash_inside_a_route_is_a_500_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer has the usual form and no internals; the log has the traceback once."""

    async def crash() -> None:
        raise RuntimeError("a secret of ours")

    with serving_crash(tmp_path, crash) as url, make_client(url) as http:
        answer = http.get("/crash")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert answer.headers["x-request-id"] in error.getMessage()


def test_a_crash_in_the_midst_of_an_answer_ends_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not whole must not look whole."""

    async def crash() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("a secret of ours")

        return StreamingResponse(parts())

    with (
        serving_crash(tmp_path, crash) as url,
        make_client(url) as http,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        http.get("/crash")
    assert any("request id" in record.getMessage() for record in caplog.records)
