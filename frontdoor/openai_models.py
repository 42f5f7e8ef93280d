"""GET /v1/models and /v1/models/{id}: the one model that is served, under its short or full name."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from frontdoor.accepting import check_model
from frontdoor.state import FrontDoor, front_door

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(http: HttpRequest) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": [_model(front_door(http))]}


@router.get("/{name:path}")
async def get_model(http: HttpRequest, name: str) -> dict[str, Any]:
    """Describe one model."""
    front = front_door(http)
    is_folder = f"/{name}" == front.settings.model_repo  # doubled slashes are one by now
    check_model(front, None if is_folder else name)
    return _model(front)


def _model(front: FrontDoor) -> dict[str, Any]:
    return {
        "id": front.model_name,
        "object": "model",
        "created": int(front.started_unix),
        "owned_by": "local",
        "root": front.public_model_repo,
        "max_model_len": front.settings.max_sequence_length,
    }
