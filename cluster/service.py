"""What the commands know of a running service: its status files, and whether the supervisor behind them
lives.

Reads only. Knows nothing of how the service is started or stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import ports
from cluster.child import EXIT_SSH
from cluster.hosts import Host
from cluster.lock import read_holder
from cluster.processes import ProcessIdentity, read_identity
from cluster.state_file import RING_NAME, STATE_NAME
from cluster.workers import Worker
from config import Settings
from config.context_length import ContextLength
from config.run_files import read_json

STALE_S = 10.0


@dataclass(frozen=True)
class Service:
    """The service of one STATE_DIR as its files say at one moment; `holder` is the living supervisor."""

    supervisor: dict[str, Any]
    ring: dict[str, Any]
    holder: ProcessIdentity | None

    @property
    def state(self) -> str:
        """starting, ready, degraded, stopping, failed, stopped: the supervisor's word, and rank 0's."""
        if self.holder is None:
            return "stopped"
        said = str(self.supervisor.get("state", "starting")) if self._is_of_holder else "starting"
        return "degraded" if said == "ready" and self.trouble else said

    @property
    def trouble(self) -> str | None:
        """Why a service whose processes all run is not ready all the same."""
        if self.ring.get("epoch") != self.supervisor.get("epoch") or self.ring.get("phase") != "ready":
            return (
                f"rank 0 says {self.ring.get('phase', 'nothing')}: {self.ring.get('reason') or 'not ready'}"
            )
        silent_s = time.time() - float(self.ring.get("updated_unix", 0))
        return f"rank 0 has not written its status for {silent_s:.0f} s" if silent_s > STALE_S else None

    @property
    def reason(self) -> str | None:
        """Why it is not ready."""
        said = self.supervisor.get("reason")
        return str(said) if said else (self.trouble if self.state == "degraded" else None)

    @property
    def exit_code(self) -> int:
        """0 ready, 1 degraded, 3 stopped."""
        return {"ready": 0, "stopped": 3}.get(self.state, 1)

    @property
    def context_lines(self) -> list[str]:
        """How long a request may be, as rank 0 says, for a person; empty where it does not say yet."""
        context = ContextLength.from_json(self.ring.get("context"))
        return [f"context: {context.describe()}"] if context else []

    @property
    def api_address(self) -> tuple[str, int] | None:
        """Where the front door of the running service listens."""
        api = self.supervisor.get("api")
        return (str(api["host"]), int(api["port"])) if api else None

    @property
    def url(self) -> str:
        """The front door's address for a person."""
        return ports.make_url(*self.api_address) if self.api_address else ""

    @property
    def processes(self) -> dict[str, ProcessIdentity]:
        """Every process of the supervisor's last word, by name, alive or not."""
        entries = self.supervisor.get("processes", [])
        found = {str(entry.get("name")): read_identity(entry) for entry in entries}
        return {name: identity for name, identity in found.items() if identity}

    @property
    def helpers(self) -> list[ProcessIdentity]:
        """Spares, and front doors that are being replaced."""
        found = (read_identity(entry) for entry in self.supervisor.get("spares", []))
        return [identity for identity in found if identity]

    @property
    def held_bytes(self) -> dict[str, int]:
        """By host name, the memory that its ranks take now."""
        found: dict[str, int] = {}
        for entry in self.supervisor.get("processes", []):
            if str(entry.get("name", "")).startswith("rank ") and entry.get("exit") is None:
                name = str(entry.get("host"))
                found[name] = found.get(name, 0) + int(entry.get("memory_bytes") or 0)
        return found

    @property
    def left_behind(self) -> dict[str, list[ProcessIdentity]]:
        """By ssh destination, the ranks of which the supervisor did not know that they had ended."""
        found: dict[str, list[ProcessIdentity]] = {}
        for entry in self.supervisor.get("processes", []):
            identity, code = read_identity(entry.get("process_there")), entry.get("exit")
            if identity and entry.get("ssh") and (code is None or code == EXIT_SSH or code < 0):
                found.setdefault(str(entry["ssh"]), []).append(identity)
        return found

    @property
    def workers(self) -> list[Worker]:
        """The other hosts of the ring, as the supervisor said last."""
        folder = str((self.supervisor.get("settings") or {}).get("WORKER_DIR", ""))
        found: dict[str, Worker] = {}
        for entry in self.supervisor.get("processes", []):
            if ssh := str(entry.get("ssh") or ""):
                host = Host(str(entry["host"]), ssh, str(entry["address"]), 1)
                found[ssh] = Worker(host, folder)
        return list(found.values())

    @property
    def _is_of_holder(self) -> bool:
        return self.holder is not None and self.supervisor.get("pid") == self.holder.pid


def read_service(settings: Settings) -> Service:
    """Read the files of the service in STATE_DIR."""
    return read_service_at(settings.run_dir)


def read_service_at(run_dir: Path) -> Service:
    """The same for a run folder."""
    holder = read_holder(run_dir)
    return Service(read_json(run_dir / STATE_NAME) or {}, read_json(run_dir / RING_NAME) or {}, holder)
