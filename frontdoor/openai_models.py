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
    check_model(front_door(http), name)
    return _model(front_door(http))


def _model(front: FrontDoor) -> dict[str, Any]:
    return {
        "id": front.model_name,
        "object": "model",
        "created": int(front.started_unix),
        "owned_by": "local",
        "root": front.public_model_repo,
        "max_model_len": front.settings.max_sequence_length,
    }
