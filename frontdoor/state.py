"""The parts that a front door's HTTP requests share, and how a route gets them.

Holds the parts, and starts and stops them; knows nothing of bodies, answers or routes.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fastapi import Request

from config import Settings
from config.context_length import ContextLength, limit_context
from config.model_path import is_folder_name
from frontdoor.disconnects import Disconnects
from frontdoor.hints import HintLog
from frontdoor.http.auth import Keys
from frontdoor.http.errors import InvalidRequest
from frontdoor.http.scope import header, notes
from frontdoor.kept_turns import KeptTurns
from frontdoor.key_limits import KeyLimits
from frontdoor.latencies import Latencies
from frontdoor.queue_estimate import QueueEstimate
from frontdoor.ring_status import RingStatus
from frontdoor.subscriptions import Subscriptions
from prompts.tokenizer import PromptTokenizer
from spool import Spool, make_id
from spool.batches import BatchStore

IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True)
class FrontDoor:
    """The parts; `workers` are threads for blocking work (fsync, long texts).

    `model_tokens` is the model's own length; None where its config names none. `sampling_defaults`: of
    requests outside /generate.
    """

    settings: Settings
    model_name: str
    spool: Spool
    tokenizer: PromptTokenizer
    subscriptions: Subscriptions
    disconnects: Disconnects
    ring_status: RingStatus
    queue_estimate: QueueEstimate
    latencies: Latencies
    kept_turns: KeptTurns
    batches: BatchStore
    keys: Keys
    key_limits: KeyLimits
    workers: ThreadPoolExecutor
    started_unix: float
    model_tokens: int | None = None
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    hints: HintLog = field(default_factory=HintLog)

    @property
    def context(self) -> ContextLength:
        """The context length from rank 0, or until then from settings and model alone."""
        return self.ring_status.context(self.settings) or limit_context(self.settings, self.model_tokens)

    @property
    def public_model_repo(self) -> str:
        """MODEL_REPO for clients: only the name, where it is a folder of this machine."""
        settings = self.settings
        is_folder = is_folder_name(settings.model_repo, settings.root)
        return self.model_name if is_folder else settings.model_repo

    def start(self) -> None:
        """Begin to listen; needs the running event loop."""
        self.subscriptions.start(self.disconnects.keep_followed)
        self.workers.submit(self.kept_turns.scan)

    def stop(self) -> None:
        """Stop listening; accepted requests go on in the spool."""
        self.subscriptions.stop()
        self.workers.shutdown(wait=False, cancel_futures=True)


def front_door(http: Request) -> FrontDoor:
    """Return the front door that serves this HTTP request."""
    found = http.app.state.front_door
    assert isinstance(found, FrontDoor)
    return found


@dataclass(frozen=True)
class Caller:
    """The client of an HTTP request, its time and its ids.

    `request_id` is new for each HTTP request; `received_unix` is the arrival of its first bytes.
    `may_return`: a disconnected client can return to its request, so there is a grace time; clients of /v1
    and /api without an Idempotency-Key cannot. `headers` of the answer may be added until it begins.
    """

    owner: str
    http_id: str
    request_id: str
    received_unix: float
    idempotency_key: str | None = None
    may_return: bool = True
    headers: dict[str, str] = field(default_factory=dict)


def caller(http: Request) -> Caller:
    """Return the caller from the notes of the outer layers and the Idempotency-Key.

    Raises:
        InvalidRequest: the key is not valid.
    """
    key = header(http.scope, b"idempotency-key")
    if key is not None and IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise InvalidRequest(
            "Idempotency-Key must have 1 to 255 visible ASCII characters", param="Idempotency-Key"
        )
    left = notes(http.scope)
    http_id = left["request_id"]
    request_id = http_id if left["is_request_id_new"] else make_id()
    may_return = key is not None or not http.scope["path"].startswith(("/v1/", "/api/"))
    return Caller(left["owner"], http_id, request_id, left["received_unix"], key, may_return, left["headers"])


def owner_of(http: Request) -> str:
    """Return the owner of this HTTP request; "" where no API keys are required."""
    return str(notes(http.scope)["owner"])
