"""HELLO: two laps at start in which the ranks prove that they belong to one ring.

Lap one carries rank 0's `RingPlan`, signed with the ring secret. Each rank compares it with its own machine,
signs the lap in turn, then loads its layers. Lap two passes a rank when it has loaded and carries each rank's
`RankInfo`. Any difference ends the start with a sentence that names the rank and the difference.

    lap one   {"plan": {...}, "mac": hex, "signatures": {"<rank>": hex}}   HMAC-SHA256, JSON with sorted keys
    lap two   {"ranks": [RankInfo, ...]}                                      flag READY
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from distributed.planning.stage_files import WeightsMark
from distributed.ring.frame import FLAG_READY, Frame, Kind, make_json_frame, parse_json
from distributed.ring.ring import Ring
from distributed.ring.watchdog import RankStart

HASH_LENGTH = 64  # SHA-256 in hex


class RefusedStart(RuntimeError):
    """This ring must not start; the message names the rank and the difference. The rank exits with code 2."""


@dataclass(frozen=True)
class RingPlan:
    """The parts of rank 0's settings and plan that stages need."""

    epoch: int
    ring_size: int
    code_hash: str
    versions: str
    weights_hash: str
    model_folder: str
    layers: tuple[tuple[int, int], ...]  # [start, stop) by rank
    dequantize: bool
    products: str | None  # what multiplies where there is no GPU; None: MLX
    step_timeout_seconds: float
    load_timeout_seconds: float
    weights_marks: tuple[WeightsMark, ...] = ()  # by rank
    keeps_windows: bool = False  # layers with a window keep no more than it

    @property
    def ranges(self) -> tuple[range, ...]:
        """Every rank's layers, by rank."""
        return tuple(range(*part) for part in self.layers)


@dataclass(frozen=True)
class RankInfo:
    """A rank's line of lap two; bytes of KV and of states are of all its layers."""

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
    state_bytes_per_row: int = 0


def sign(secret: str, body: Any) -> str:
    """Return the HMAC-SHA256 of a JSON body, hex."""
    raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()


def hash_code(root: Path) -> str:
    """Return the SHA-256 of server.py and distributed/, which must be equal on all ranks."""
    digest = hashlib.sha256()
    for path in sorted([root / "server.py", *(root / "distributed").rglob("*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def list_versions() -> str:
    """Return the package versions that must be equal on all ranks, as text."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("mlx", "mlx-lm"))


def name_rank(start: RankStart) -> str:
    """Return `rank 1`, or `rank 1 on mac2` in a ring over several hosts."""
    return f"rank {start.rank} on {start.host_name}" if start.host_name else f"rank {start.rank}"


def make_hello(plan: RingPlan, secret: str) -> Frame:
    """Build rank 0's frame of lap one."""
    body = msgspec.to_builtins(plan)
    signed = {"plan": body, "mac": sign(secret, body), "signatures": {}}
    return make_json_frame(Kind.HELLO, signed, epoch=plan.epoch)


def answer_hello(
    frame: Frame, ring: Ring, start: RankStart, code_hash: str, weights_hash: Any
) -> tuple[RingPlan, Frame]:
    """Check and sign lap one on any rank but 0.

    Args:
        start: names this host's model folder if it differs from rank 0's.
        weights_hash: returns the hash of a model folder on this machine.

    Raises:
        RefusedStart: the plan is not signed with our secret, or differs from this machine.
    """
    body, secret, who = parse_json(frame), start.secret, name_rank(start)
    if not hmac.compare_digest(str(body.get("mac")), sign(secret, body.get("plan"))):
        raise RefusedStart(f"{who} has another ring secret than rank 0")
    plan = msgspec.convert(body["plan"], RingPlan)
    plan = replace(plan, model_folder=start.model_folder or plan.model_folder)
    for name, theirs, ours in (
        ("ring size", plan.ring_size, ring.size),
        ("epoch", plan.epoch, ring.epoch),
        ("versions", plan.versions, list_versions()),
        ("code", plan.code_hash, code_hash),
        ("model weights", plan.weights_hash, weights_hash(Path(plan.model_folder))),
    ):
        if theirs != ours:
            raise RefusedStart(
                f"{who} differs from rank 0 in its {name}: {_short(ours)} there, {_short(theirs)} on rank 0"
            )
    body["signatures"][str(ring.rank)] = sign(secret, [ring.rank, body["mac"]])
    return plan, make_json_frame(Kind.HELLO, body, epoch=plan.epoch)


def check_weights(plan: RingPlan, start: RankStart, mark: WeightsMark) -> None:
    """Check on any rank but 0 that its weight files equal those on rank 0's host.

    Raises:
        RefusedStart: they differ.
    """
    differing = plan.weights_marks[start.rank].differs_from(mark)
    if differing:
        raise RefusedStart(
            f"{name_rank(start)} has other model weights in {plan.model_folder} than rank 0 (the "
            f"{differing} of its files differ): ./launch.sh start copies the files that differ"
        )


def check_signatures(frame: Frame, ring: Ring, secret: str) -> None:
    """Check on rank 0 that every rank has signed lap one.

    Raises:
        RefusedStart: a rank did not sign, or with another secret.
    """
    body = parse_json(frame)
    for rank in range(1, ring.size):
        wanted = sign(secret, [rank, body["mac"]])
        if not hmac.compare_digest(str(body["signatures"].get(str(rank))), wanted):
            raise RefusedStart(f"rank {rank} did not prove that it has the ring secret")


def make_ready(ring: Ring) -> Frame:
    """Build rank 0's frame of lap two."""
    return make_json_frame(Kind.HELLO, {"ranks": []}, epoch=ring.epoch, flags=FLAG_READY)


def answer_ready(frame: Frame, info: RankInfo) -> Frame:
    """Add this rank's line to lap two."""
    body = parse_json(frame)
    body["ranks"].append(asdict(info))
    return make_json_frame(Kind.HELLO, body, epoch=frame.epoch, flags=FLAG_READY)


def read_ready(frame: Frame, own: RankInfo, ring_size: int) -> tuple[RankInfo, ...]:
    """Return every rank's line of lap two, by rank.

    Raises:
        RefusedStart: a rank is missing.
    """
    infos = {info.rank: info for info in (own, *(RankInfo(**line) for line in parse_json(frame)["ranks"]))}
    missing = [rank for rank in range(ring_size) if rank not in infos]
    if missing:
        raise RefusedStart(f"rank {missing[0]} did not report that it has loaded")
    return tuple(infos[rank] for rank in range(ring_size))


def _short(value: Any) -> str:
    """Return the first digits of a hash, any other value as text."""
    text = str(value)
    return text[:12] if len(text) == HASH_LENGTH else text
