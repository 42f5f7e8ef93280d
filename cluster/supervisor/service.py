"""What the commands know of a running service: its status files, and whether its supervisor lives.

Reads only. Knows nothing of how the service is started or stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import ports
from cluster.disk import find_disk_trouble
from cluster.hosts.hosts import Host
from cluster.hosts.worker_setup import Worker
from cluster.processes import ProcessIdentity, read_identity
from cluster.supervisor.child import EXIT_SSH
from cluster.supervisor.lock import read_holder
from cluster.supervisor.state_file import RING_NAME, STATE_NAME
from config import Settings
from config.context_length import ContextLength
from config.run_files import mapping, number, read_json

STALE_S = 10.0
UNREADY = ("starting", "degraded")


@dataclass(frozen=True)
class Service:
    """The service of one STATE_DIR at one moment, by its files; `holder` is the living supervisor."""

    supervisor: dict[str, Any]
    ring: dict[str, Any]
    holder: ProcessIdentity | None
    # Why the disk keeps requests out; then the files may be old, too.
    disk_trouble: str | None = None

    @property
    def state(self) -> str:
        """starting, ready, degraded, stopping, failed or stopped, by the supervisor's status and rank 0's."""
        if self.holder is None:
            return "stopped"
        said = str(self.supervisor.get("state", "starting")) if self._is_of_holder else "starting"
        return "degraded" if said == "ready" and self.trouble else said

    @property
    def trouble(self) -> str | None:
        """Why a service is not ready though all its processes run."""
        if self.disk_trouble:
            return self.disk_trouble
        if self.ring.get("epoch") != self.supervisor.get("epoch") or self.ring.get("phase") != "ready":
            return (
                f"rank 0 says {self.ring.get('phase', 'nothing')}: {self.ring.get('reason') or 'not ready'}"
            )
        silent_s = time.time() - number(self.ring.get("updated_unix"))
        return f"rank 0 has not written its status for {silent_s:.0f} s" if silent_s > STALE_S else None

    @property
    def reason(self) -> str | None:
        """Why it is not ready; if it does not run, why it ended without `stop`."""
        said = self.supervisor.get("reason")
        if self.holder is None:
            return self._describe_end(said)
        return str(said) if said else (self.trouble if self.state == "degraded" else None)

    def _describe_end(self, said: str | None) -> str | None:
        state = self.supervisor.get("state")
        if state in (None, "stopped"):
            return None
        if state == "failed":  # it wrote why
            return str(said) if said else None
        last = f"{state}: {said}" if said else state
        return (
            f"supervisor {self.supervisor.get('pid')} died without a message (killed, out of memory, or the "
            f"machine went down); its last state was {last}. The queue is kept"
        )

    @property
    def is_stuck(self) -> bool:
        """Another try alone will hardly help; a service that worked before is tried all the same."""
        return self._is_of_holder and bool(self.supervisor.get("is_stuck"))

    @property
    def waits_for(self) -> str | None:
        """When the ring that failed is tried again, for a person."""
        said = self.supervisor
        if self.state == "failed":
            return "the ring is not tried again by itself: fix the cause, then ./launch.sh restart"
        if self.state not in UNREADY or not self._is_of_holder or not said.get("num_failures"):
            return None
        left_s = number(said.get("next_try_unix")) - time.time()
        when = f"the next try is in {left_s:.0f} s" if left_s >= 1 else "the ring is being tried now"
        hint = "; it is tried until it works, and ./launch.sh restart tries at once" if self.is_stuck else ""
        return f"{when}, failed tries: {said['num_failures']}{hint}"

    @property
    def exit_code(self) -> int:
        """0 ready, 1 degraded, 3 stopped."""
        return {"ready": 0, "stopped": 3}.get(self.state, 1)

    @property
    def context_lines(self) -> list[str]:
        """How long a request may be, for a person; empty until rank 0 says."""
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
    def is_up(self) -> bool:
        """Everything runs; at most the disk keeps requests out."""
        is_said = self._is_of_holder and self.supervisor.get("state") == "ready"
        return is_said and self.trouble == self.disk_trouble

    @property
    def troubles(self) -> list[str]:
        """What the disk refuses, beside the reason."""
        said = (("rank 0", self.ring), ("supervisor", self.supervisor))
        found = [f"{who}: {text}" for who, status in said for text in status.get("troubles") or ()]
        is_shown = self.disk_trouble is None or self.reason == self.disk_trouble
        return found if is_shown else [str(self.disk_trouble), *found]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The processes in supervisor.json, alive or not."""
        return list(self.supervisor.get("processes") or [])

    @property
    def processes(self) -> dict[str, ProcessIdentity]:
        """Every process in supervisor.json by name, alive or not."""
        found = {str(entry.get("name")): read_identity(entry) for entry in self.entries}
        return {name: identity for name, identity in found.items() if identity}

    @property
    def leaving(self) -> list[ProcessIdentity]:
        """Replaced front doors that may still run."""
        found = (read_identity(entry) for entry in self.supervisor.get("leaving", []))
        return [identity for identity in found if identity]

    @property
    def held_bytes(self) -> dict[str, int]:
        """By host name, the memory that its ranks use now."""
        found: dict[str, int] = {}
        for entry in self.entries:
            if str(entry.get("name", "")).startswith("rank ") and entry.get("exit") is None:
                name = str(entry.get("host"))
                found[name] = found.get(name, 0) + int(number(entry.get("memory_bytes")))
        return found

    @property
    def left_behind(self) -> dict[str, list[ProcessIdentity]]:
        """By ssh destination, the ranks that may still run there."""
        found: dict[str, list[ProcessIdentity]] = {}
        for entry in self.entries:
            identity, code = read_identity(entry.get("process_there")), entry.get("exit")
            if identity and entry.get("ssh") and (code is None or code == EXIT_SSH or code < 0):
                found.setdefault(str(entry["ssh"]), []).append(identity)
        return found

    @property
    def workers(self) -> list[Worker]:
        """The other hosts of the ring, by supervisor.json."""
        folder = str(mapping(self.supervisor.get("settings")).get("WORKER_DIR", ""))
        found: dict[str, Worker] = {}
        for entry in self.entries:
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
    """Read the files of the service in a run folder."""
    holder = read_holder(run_dir)
    supervisor, ring = (read_json(run_dir / name) or {} for name in (STATE_NAME, RING_NAME))
    return Service(supervisor, ring, holder, find_disk_trouble(run_dir.parent))
