"""The successful answers of every route, for the OpenAPI description.

A schema names the members that clients may rely on; answers may have more. Knows no errors and no bodies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontdoor.dialects.ollama_answers import NDJSON
from frontdoor.http.bodies import JSON_TYPE
from frontdoor.http.events import EVENT_STREAM
from frontdoor.state import IDEMPOTENCY_KEY

TEXT: Mapping[str, Any] = {"type": "string"}
REF_TEMPLATE = "#/components/schemas/{model}"


def reference(name: str) -> dict[str, Any]:
    """Refer to a schema of the description."""
    return {"$ref": REF_TEMPLATE.format(model=name)}


def _object(**members: str) -> dict[str, Any]:
    """Describe an object by its members' types; `?` behind a type: or null."""
    types = {
        name: {"type": [kind.removesuffix("?"), "null"] if kind.endswith("?") else kind}
        for name, kind in members.items()
    }
    return {"type": "object", "required": list(members), "properties": types}


_HEAD = {"id": "string", "object": "string", "model": "string"}
_OPENAI = {**_HEAD, "created": "integer", "choices": "array", "usage": "object"}
_STORED = {"id": "string", "object": "string", "created_at": "integer"}
_PLACE = {"position": "integer?", "estimated_wait_s": "number?"}
_OLLAMA = {"model": "string", "created_at": "string", "done": "boolean", "done_reason": "string"}
SCHEMAS: Mapping[str, dict[str, Any]] = {
    "GenerateAnswer": _object(
        id="string", text="string", finish_reason="string", model="string", usage="object",
        performance="object",
    ),
    "AcceptedAnswer": _object(id="string", status_url="string", **_PLACE),
    "RequestAnswer": _object(id="string", state="string"),
    "CancelAnswer": _object(id="string", state="string", cancelled="boolean"),
    "ChatAnswer": _object(**_OPENAI),
    "CompletionAnswer": _object(**_OPENAI),
    "ResponsesAnswer": _object(
        **_HEAD, created_at="number", status="string", output="array", usage="object?"
    ),
    "MessagesAnswer": _object(
        id="string", type="string", role="string", model="string", content="array", stop_reason="string?",
        usage="object",
    ),
    "CountTokensAnswer": _object(input_tokens="integer"),
    "OllamaChatAnswer": _object(**_OLLAMA, message="object"),
    "OllamaGenerateAnswer": _object(**_OLLAMA, response="string"),
    "OllamaShowAnswer": _object(details="object", model_info="object", capabilities="array"),
    "OllamaModelsAnswer": _object(models="array"),
    "OllamaVersionAnswer": _object(version="string"),
    "TokenizeAnswer": _object(count="integer", max_model_len="integer", tokens="array"),
    "DetokenizeAnswer": _object(prompt="string"),
    "ModelAnswer": _object(**dict.fromkeys(("id", "object", "owned_by"), "string"), created="integer"),
    "ListAnswer": _object(object="string", data="array", has_more="boolean"),
    "FileAnswer": _object(**_STORED, bytes="integer", filename="string", purpose="string", status="string"),
    "DeletedAnswer": _object(id="string", object="string", deleted="boolean"),
    "BatchAnswer": _object(
        **_STORED, endpoint="string", input_file_id="string", status="string", request_counts="object"
    ),
    "AliveAnswer": _object(status="string", version="string", uptime_s="number"),
    "ReadyAnswer": _object(status="string", reason="string?"),
    "IndexAnswer": _object(name="string", version="string", model="string", endpoints="array"),
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """The answers of a route: JSON by a schema, texts of other media types, or both.

    `others`: schemas of other statuses than 200. `errors`: statuses that do not follow from path and body.
    """

    schema: str | None = None
    texts: Sequence[str] = ()
    others: Mapping[int, str] = field(default_factory=dict)
    errors: Sequence[int] = ()
    parameters: Sequence[dict[str, Any]] = ()
    is_file: bool = False

    def responses(self) -> dict[str, Any]:
        """Return the responses by status."""
        schemas = {} if self.schema is None else {JSON_TYPE: reference(self.schema)}
        described = {"200": _response({**schemas, **dict.fromkeys(self.texts, TEXT)})}
        if self.is_file:
            described["206"] = {"description": "A range"}
        return described | {
            str(status): _response({JSON_TYPE: reference(name)}) for status, name in self.others.items()
        }


def _response(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    if EVENT_STREAM in content:
        content[EVENT_STREAM] = {}  # before OpenAPI 3.2 a schema cannot describe single events
    return {"description": "Answer", "content": content}


def _parameter(name: str, place: str, text: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "description": text, "schema": schema}


_INDEX = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_FROM = (
    _parameter("from", "query", "The first token to send.", **_INDEX),
    _parameter("Last-Event-ID", "header", "The last token received; wins over `from`.", **_INDEX),
)
_RETRY = (
    _parameter(
        "Idempotency-Key",
        "header",
        "Makes retries safe.",
        type="string",
        pattern=f"^{IDEMPOTENCY_KEY.pattern}$",
    ),
)
_PURPOSE = _parameter("purpose", "query", "Only files with this purpose.", type="string")


def _paging(most: int) -> tuple[dict[str, Any], ...]:
    return (
        _parameter("limit", "query", "The most entries of a page.", type="integer", minimum=1, maximum=most),
        _parameter("after", "query", "The id of the entry before the page.", type="string"),
        _parameter("order", "query", "By the time of creation.", enum=["asc", "desc"]),
    )


def _file(*media_types: str, schema: str | None = None) -> Answers:
    return Answers(schema, media_types, errors=(416,), is_file=True)


def _accepting(schema: str, stream: str = EVENT_STREAM, **others: Any) -> Answers:
    """Describe a route that puts requests into the queue."""
    return Answers(schema, (stream,), errors=(409, 410, 429, 504, 507), parameters=_RETRY, **others)


_PAGE_TYPES = ("text/html", "text/css", "text/javascript")  # of the page
ANSWERS: Mapping[str, Answers] = {
    "POST /generate": _accepting("GenerateAnswer", others={202: "AcceptedAnswer"}),
    "GET /requests/{request_id}": Answers("RequestAnswer"),
    "DELETE /requests/{request_id}": Answers("CancelAnswer", errors=(507,)),
    "GET /requests/{request_id}/stream": Answers(texts=(EVENT_STREAM,), parameters=_FROM),
    "POST /v1/chat/completions": _accepting("ChatAnswer"),
    "POST /v1/completions": _accepting("CompletionAnswer"),
    "POST /v1/responses": _accepting("ResponsesAnswer"),
    "POST /v1/messages": _accepting("MessagesAnswer"),
    "POST /v1/messages/count_tokens": Answers("CountTokensAnswer"),
    "POST /api/chat": _accepting("OllamaChatAnswer", NDJSON),
    "POST /api/generate": _accepting("OllamaGenerateAnswer", NDJSON),
    "POST /api/show": Answers("OllamaShowAnswer"),
    "GET /api/tags": Answers("OllamaModelsAnswer"),
    "GET /api/ps": Answers("OllamaModelsAnswer"),
    "GET /api/version": Answers("OllamaVersionAnswer"),
    "POST /tokenize": Answers("TokenizeAnswer"),
    "POST /detokenize": Answers("DetokenizeAnswer"),
    "GET /v1/models": Answers("ListAnswer"),
    "GET /v1/models/{name}": Answers("ModelAnswer"),
    "POST /v1/files": Answers("FileAnswer", errors=(507,)),
    "GET /v1/files": Answers("ListAnswer", parameters=(*_paging(10_000), _PURPOSE)),
    "GET /v1/files/{file_id}": Answers("FileAnswer"),
    "GET /v1/files/{file_id}/content": _file("application/octet-stream"),
    "DELETE /v1/files/{file_id}": Answers("DeletedAnswer", errors=(507,)),
    "POST /v1/batches": Answers("BatchAnswer", errors=(409, 429, 507), parameters=_RETRY),
    "GET /v1/batches": Answers("ListAnswer", parameters=_paging(100)),
    "GET /v1/batches/{batch_id}": Answers("BatchAnswer"),
    "POST /v1/batches/{batch_id}/cancel": Answers("BatchAnswer", errors=(409, 507)),
    "GET /livez": Answers("AliveAnswer"),
    "GET /readyz": Answers("ReadyAnswer", others={503: "ReadyAnswer"}),
    "GET /health": Answers("ReadyAnswer", others={503: "ReadyAnswer"}),
    "GET /metrics": Answers(texts=("text/plain",)),
    "GET /": _file("text/html", schema="IndexAnswer"),
    "GET /ui": _file("text/html"),
    "GET /ui/{name}": _file(*_PAGE_TYPES),
}
