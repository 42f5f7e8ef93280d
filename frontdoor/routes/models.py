"""GET /v1/models and /v1/models/{id}: the served model and its aliases, all with the same root.

Models and their list have the fields of OpenAI's form and of Anthropic's.
"""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from frontdoor.served_model import check_model
from frontdoor.state import FrontDoor, front_door

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(http: HttpRequest) -> dict[str, Any]:
    """List the models."""
    front = front_door(http)
    given = dict.fromkeys((front.model_name, *front.settings.model_alias_list))
    names = [name for name in given if name != "*"]
    page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
    return {"object": "list", "data": [_model(front, name) for name in names], **page}


@router.get("/{name:path}")
async def get_model(http: HttpRequest, name: str) -> dict[str, Any]:
    """Describe one model."""
    front = front_door(http)
    is_folder = f"/{name}" == front.settings.model_repo  # doubled slashes are one by now
    check_model(front, None if is_folder else name)
    return _model(front, front.model_name if is_folder or name == front.settings.model_repo else name)


def _model(front: FrontDoor, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(front.started_unix),
        "owned_by": "local",
        "root": front.public_model_repo,
        "max_model_len": front.context.max_tokens,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(int(front.started_unix), UTC).isoformat(),
        "max_input_tokens": front.context.max_tokens,
    }
