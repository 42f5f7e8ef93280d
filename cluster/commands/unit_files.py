"""The text of the unit that starts the supervisor at boot or login: systemd on Linux, launchd on macOS.

Pure: paths and user in, text out. All paths are absolute paths of this machine, so the repository has no
unit. Both run `launch.sh start --foreground`, start it again after a failure but not after a stop, give
requests time to end, and keep the files private.
"""

from __future__ import annotations

import plistlib
from dataclasses import dataclass
from pathlib import Path

UNIT_NAME = "mlx-ring.service"
LABEL = "local.mlx-ring"
MARK = "Written by launch.sh service install"
RESTART_S = 5
# Beyond SHUTDOWN_TIMEOUT, for processes to end and files to close.
STOP_SPARE_S = 30
EXIT_WRONG_SETTINGS = 2


@dataclass(frozen=True)
class UnitPlan:
    """The contents of a unit; `user` is set for one that the system starts."""

    root: Path
    flags: tuple[str, ...]  # of `start`, such as --set KEY=VALUE
    log: Path
    shutdown_timeout_s: float
    num_files: tuple[int, int]  # soft and hard limit of open files
    user: str | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The command that the unit runs."""
        return (str(self.root / "launch.sh"), "start", "--foreground", *self.flags)

    @property
    def stop_s(self) -> int:
        """How long a stop may take before everything is killed."""
        return int(self.shutdown_timeout_s) + STOP_SPARE_S


def make_systemd_unit(plan: UnitPlan) -> str:
    """The unit file. Restart=on-failure leaves `launch.sh stop` and wrong settings (exit code 2) alone."""
    soft, hard = plan.num_files
    log = _escape_specifiers(str(plan.log))
    network = ["Wants=network-online.target", "After=network-online.target"] if plan.user else []
    user = [f"User={plan.user}"] if plan.user else []
    lines = [
        f"# {MARK}; remove it with: {plan.root}/launch.sh service remove",
        "[Unit]",
        "Description=Ring of machines that serves one language model",
        *network,
        "StartLimitIntervalSec=0",  # retry without limit: a disk or a network may come late
        "",
        "[Service]",
        "Type=exec",
        *user,
        f"WorkingDirectory={_escape_specifiers(str(plan.root))}",
        f"ExecStart={' '.join(quote_for_systemd(word) for word in plan.command)}",
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        f"RestartPreventExitStatus={EXIT_WRONG_SETTINGS}",
        "KillMode=mixed",
        f"TimeoutStopSec={plan.stop_s}",
        f"LimitNOFILE={soft}:{hard}",
        "UMask=0077",
        f"StandardOutput=append:{log}",
        f"StandardError=append:{log}",
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if plan.user else 'default.target'}",
    ]
    return "\n".join(lines) + "\n"


def quote_for_systemd(word: str) -> str:
    """A word of ExecStart: quoted, with systemd's own % and $ escaped."""
    escaped = _escape_specifiers(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'


def _escape_specifiers(text: str) -> str:
    return text.replace("%", "%%")


def make_launchd_plist(plan: UnitPlan) -> bytes:
    """The property list. KeepAlive only after a failure; Interactive, so that macOS does not slow it down."""
    soft, hard = plan.num_files
    entries: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(plan.command),
        "WorkingDirectory": str(plan.root),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S * 2,
        "ExitTimeOut": plan.stop_s,
        "ProcessType": "Interactive",
        "Umask": 0o077,
        "SoftResourceLimits": {"NumberOfFiles": soft},
        "HardResourceLimits": {"NumberOfFiles": hard},
        "StandardOutPath": str(plan.log),
        "StandardErrorPath": str(plan.log),
    }
    if plan.user:
        entries["UserName"] = plan.user
    return plistlib.dumps(entries, sort_keys=False).replace(b"<plist", f"<!-- {MARK} -->\n<plist".encode(), 1)
