"""HELLO: two laps at start in which the ranks of a ring prove that they belong together.

Lap one carries rank 0's `RingPlan` (what the stages need to know), signed with the ring secret; each rank
checks it against what it sees on its own machine and signs the lap in turn, then loads its layers. Lap two
comes back when all have loaded and carries each rank's `RankInfo`. Any difference ends the start with a
sentence that names the rank and the difference.

    lap one   {"plan": {...}, "mac": hex, "signatures": {"<rank>": hex}}   HMAC-SHA256, JSON with sorted keys
    lap two   {"ranks": [RankInfo, ...]}                                      flag READY
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed.frame import FLAG_READY, Frame, Kind, make_json_frame, parse_json
from distributed.ring import Ring


class RefusedStart(RuntimeError):
    """This ring must not start; the sentence says which rank differs in what. Handled by exit code 2."""


@dataclass(frozen=True)
class RingPlan:
    """Rank 0's effective settings as far as stages need them."""

    epoch: int
    ring_size: int
    code_hash: str
    weights_hash: str
    model_folder: str
    layers: tuple[tuple[int, int], ...]  # [start, stop) by rank
    dequantize: bool
    dtype: str | None
    step_timeout_seconds: float
    load_timeout_seconds: float

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> RingPlan:
        layers = tuple((int(start), int(stop)) for start, stop in body["layers"])
        return cls(**{**body, "layers": layers})

    def layers_of(self, rank: int) -> range:
        return range(*self.layers[rank])


@dataclass(frozen=True)
class RankInfo:
    """What a rank tells of itself when it has loaded."""

    rank: int
    host: str
    pid: int
    first_layer: int
    num_layers: int
    weights_bytes: int
    kv_bytes_per_token: int
    memory_bytes: int
    load_s: float
    device: str


def sign(secret: str, body: Any) -> str:
    """Return the HMAC-SHA256 of a JSON body, hex."""
    raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()


def hash_code(root: Path) -> str:
    """Return a hash of the code that must be equal on all ranks: server.py and distributed/."""
    digest = hashlib.sha256()
    for path in sorted([root / "server.py", *(root / "distributed").rglob("*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def make_hello(plan: RingPlan, secret: str) -> Frame:
    """Build lap one as rank 0 sends it."""
    body = json.loads(json.dumps(asdict(plan)))
    signed = {"plan": body, "mac": sign(secret, body), "signatures": {}}
    return make_json_frame(Kind.HELLO, signed, epoch=plan.epoch)


def answer_hello(
    frame: Frame, ring: Ring, secret: str, code_hash: str, weights_hash: Any
) -> tuple[RingPlan, Frame]:
    """Check lap one on a rank behind rank 0 and sign it.

    Args:
        weights_hash: called with the plan's model folder; the hash of what lies there on this machine.

    Raises:
        RefusedStart: the plan is not signed with our secret, or differs from what is here.
    """
    body = parse_json(frame)
    if not hmac.compare_digest(str(body.get("mac")), sign(secret, body.get("plan"))):
        raise RefusedStart(f"rank {ring.rank} has another ring secret than rank 0")
    plan = RingPlan.from_body(body["plan"])
    for name, theirs, ours in (
        ("ring size", plan.ring_size, ring.size),
        ("epoch", plan.epoch, ring.epoch),
        ("code", plan.code_hash, code_hash),
        ("model weights", plan.weights_hash, weights_hash(Path(plan.model_folder))),
    ):
        if theirs != ours:
            raise RefusedStart(
                f"rank {ring.rank} differs from rank 0 in its {name}: "
                f"{_short(ours)} there, {_short(theirs)} on rank 0"
            )
    body["signatures"][str(ring.rank)] = sign(secret, [ring.rank, body["mac"]])
    return plan, make_json_frame(Kind.HELLO, body, epoch=plan.epoch)


def check_signatures(frame: Frame, ring: Ring, secret: str) -> None:
    """Check on rank 0 that lap one came back signed by every rank.

    Raises:
        RefusedStart: a rank did not sign, or with another secret.
    """
    body = parse_json(frame)
    for rank in range(1, ring.size):
        wanted = sign(secret, [rank, body["mac"]])
        if not hmac.compare_digest(str(body["signatures"].get(str(rank))), wanted):
            raise RefusedStart(f"rank {rank} did not prove that it knows the ring secret")


def make_ready(ring: Ring) -> Frame:
    """Build lap two as rank 0 sends it."""
    return make_json_frame(Kind.HELLO, {"ranks": []}, epoch=ring.epoch, flags=FLAG_READY)


def answer_ready(frame: Frame, info: RankInfo) -> Frame:
    """Add this rank's line to lap two."""
    body = parse_json(frame)
    body["ranks"].append(asdict(info))
    return make_json_frame(Kind.HELLO, body, epoch=frame.epoch, flags=FLAG_READY)


def read_ready(frame: Frame, own: RankInfo, ring_size: int) -> tuple[RankInfo, ...]:
    """Return every rank's line, by rank.

    Raises:
        RefusedStart: a rank is missing.
    """
    infos = {info.rank: info for info in (own, *(RankInfo(**line) for line in parse_json(frame)["ranks"]))}
    missing = [rank for rank in range(ring_size) if rank not in infos]
    if missing:
        raise RefusedStart(f"rank {missing[0]} did not answer that it has loaded")
    return tuple(infos[rank] for rank in range(ring_size))


def _short(value: Any) -> str:
    return str(value)[:12]
