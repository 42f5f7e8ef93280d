"""GET /livez, /readyz and /health: whether this process answers and the ring makes progress, with details.

ring_status and the spool decide readiness. These answers are public: no secrets, no paths of this machine,
nothing of requests.
"""

import time
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from config.errors import SOON_SECONDS
from frontdoor import VERSION
from frontdoor.ring_status import Readiness
from frontdoor.state import FrontDoor, front_door
from spool import SpoolUnavailable

router = APIRouter()

RING_MEMBERS = (
    "phase", "reason", "epoch", "model", "ring_size", "step", "started_unix", "updated_unix", "last_lap_unix",
    "ranks", "queue", "kv", "totals",
)  # fmt: skip
PATH_SETTINGS = frozenset(
    {"STATE_DIR", "LOG_FILE", "MODEL_CACHE_DIR", "RING_HOSTFILE", "WORKER_DIR", "WORKER_PYTHON"}
)
SUPERVISOR_MEMBERS = ("state", "reason", "restarts", "started_unix", "updated_unix")


@router.get("/livez")
async def livez(http: HttpRequest) -> dict[str, Any]:
    """Report that this process answers."""
    return {"status": "alive", "version": VERSION, "uptime_s": _uptime_s(front_door(http))}


@router.get("/readyz")
async def readyz(http: HttpRequest) -> JSONResponse:
    """Report whether the ring makes progress and the spool accepts requests."""
    return _respond(_judge(front_door(http)), {})


@router.get("/health")
async def health(http: HttpRequest) -> JSONResponse:
    """Report the ring, its ranks, the queue and the effective settings."""
    front = front_door(http)
    ring, supervisor = front.ring_status.ring(), front.ring_status.supervisor()
    details = {
        "version": VERSION,
        "model": front.model_name,
        "uptime_s": _uptime_s(front),
        "context": vars(front.context),
        "sampling_defaults": front.sampling_defaults,
        "ring": {name: ring[name] for name in RING_MEMBERS if name in ring},
        "supervisor": {name: supervisor[name] for name in SUPERVISOR_MEMBERS if name in supervisor},
        "settings": public_settings(front),
    }
    return _respond(_judge(front), details)


def public_settings(front: FrontDoor) -> dict[str, str | int | float | None]:
    """Return the effective settings without secrets and without paths of this machine."""
    shown = {key: value for key, value in front.settings.public().items() if key not in PATH_SETTINGS}
    return {**shown, "MODEL_REPO": front.public_model_repo}


def _judge(front: FrontDoor) -> Readiness:
    """Return the ring's readiness, or the spool's where it accepts nothing: the ring may not notice that."""
    readiness = front.ring_status.readiness()
    if readiness.state not in ("ready", "down", "stalled"):
        return readiness
    try:
        front.spool.check_room()
    except SpoolUnavailable as error:
        return Readiness(error.code, f"no request is accepted: {error}")
    return readiness


def _respond(readiness: Readiness, details: dict[str, Any]) -> JSONResponse:
    body = {"status": readiness.state, "reason": readiness.reason, **details}
    if readiness.is_ready:
        return JSONResponse(body)
    return JSONResponse(body, status_code=503, headers={"Retry-After": str(SOON_SECONDS)})


def _uptime_s(front: FrontDoor) -> float:
    return round(time.time() - front.started_unix, 3)
