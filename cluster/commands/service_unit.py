"""`service install|remove|show`: installs the unit for systemd or launchd, and removes exactly that.

For this user by default; with `--system` (as root) for the machine, run as the user who called sudo. Refuses
to touch a file of that name that we did not write, or that starts another copy of this program. Knows nothing
of a unit's contents.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.commands.unit_files import (
    LABEL,
    MARK,
    UNIT_NAME,
    UnitPlan,
    make_launchd_plist,
    make_systemd_unit,
)
from cluster.errors import ClusterError
from cluster.log_files import log_path
from cluster.supervisor.service import read_service
from cluster.terminal import Terminal
from config import Settings
from config.model_path import is_folder_name

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND_LIMIT_S = 120.0
# Below the home folder: agents and daemons cannot read them, programs started in Terminal can.
PRIVATE_FOLDERS = ("Desktop", "Documents", "Downloads", "Library/Mobile Documents", "Library/CloudStorage")


@dataclass(frozen=True)
class Keeper:
    """systemd or launchd, for one user or the system: its file and its commands."""

    name: str
    path: Path
    text: bytes
    probe: tuple[str, ...]  # succeeds if systemd or launchd runs
    load: tuple[tuple[str, ...], ...]
    unload: tuple[tuple[str, ...], ...]
    forget: tuple[tuple[str, ...], ...] = ()  # after the file was removed
    links: tuple[Path, ...] = ()  # made by `enable`


def run_service_command(
    settings: Settings,
    overrides: Mapping[str, str],
    terminal: Terminal,
    action: str,
    *,
    is_system: bool,
    platform: str = sys.platform,
) -> int:
    """Install, remove or show the unit; the exit code."""
    keeper = make_keeper(settings, overrides, is_system=is_system, platform=platform)
    if action == "show":
        terminal.line(f"# {keeper.path}")
        terminal.raw(keeper.text.decode())
        return 0
    if is_system and os.geteuid() != 0:
        raise ClusterError(f"--system needs root: sudo ./launch.sh service {action} --system")
    if action == "remove":
        return remove(keeper, terminal)
    if keeper.name == "launchd" and not is_system and (settings.worker_hosts or settings.ring_hostfile):
        raise ClusterError(
            "macOS keeps launchd agents of a user off the local network, so that the ring would not connect "
            "(Apple's technical note TN3179): sudo ./launch.sh service install --system"
        )
    if keeper.name == "launchd" and (trouble := find_private_folder(settings)):
        raise ClusterError(f"{trouble}: move it to another folder of your home, then install again")
    install(keeper, settings, terminal)
    if keeper.name == "systemd" and not is_system:
        _show_linger(terminal)
    return 0


def find_private_folder(settings: Settings) -> str | None:
    """A sentence on the first folder of the service that macOS keeps from launchd's programs."""
    home = Path(os.path.realpath(owner().pw_dir))
    used = [ROOT, settings.state_dir]
    used += [settings.model_dir] if is_folder_name(settings.model_repo, settings.root) else []
    used += [settings.model_cache_dir] if settings.model_cache_dir else []
    for path in (Path(os.path.realpath(folder)) for folder in used):
        for private in (home / name for name in PRIVATE_FOLDERS):
            if path.is_relative_to(private):
                return f"{path} lies in {private}, which macOS keeps from launchd's programs"
    return None


def launchd_path(*, is_system: bool) -> Path:
    """Where the property list of an agent or a daemon lies."""
    folder = Path("/Library/LaunchDaemons") if is_system else Path.home() / "Library" / "LaunchAgents"
    return folder / f"{LABEL}.plist"


def make_keeper(
    settings: Settings, overrides: Mapping[str, str], *, is_system: bool, platform: str
) -> Keeper:
    """systemd or launchd of this machine, with the unit for these settings."""
    plan = UnitPlan(
        root=ROOT,
        flags=tuple(word for key, value in overrides.items() for word in ("--set", f"{key}={value}")),
        log=log_path(settings.log_dir, "supervisor"),
        shutdown_timeout_s=settings.shutdown_timeout,
        num_files=(settings.file_descriptor_soft_limit, settings.file_descriptor_hard_limit),
        user=owner().pw_name if is_system else None,
    )
    if any("\n" in word for word in (*plan.command, str(plan.log))):
        raise ClusterError("a unit cannot have a path or flag with a line break: rename or remove it")
    return make_launchd(plan) if platform == "darwin" else make_systemd(plan)


def owner() -> pwd.struct_passwd:
    """The user who runs the service: the caller of sudo, else this process's user."""
    caller = os.environ.get("SUDO_USER")
    if os.geteuid() == 0 and caller:
        return pwd.getpwnam(caller)
    return pwd.getpwuid(os.geteuid())


def make_systemd(plan: UnitPlan) -> Keeper:
    """`systemctl --user`, or the system's."""
    scope = ("systemctl", "--system") if plan.user else ("systemctl", "--user")
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    folder = Path("/etc/systemd/system") if plan.user else Path(config) / "systemd" / "user"
    target = "multi-user.target" if plan.user else "default.target"
    return Keeper(
        name="systemd",
        path=folder / UNIT_NAME,
        text=make_systemd_unit(plan).encode(),
        probe=(*scope, "show-environment"),
        load=((*scope, "daemon-reload"), (*scope, "enable", "--now", UNIT_NAME)),
        unload=((*scope, "disable", "--now", UNIT_NAME),),
        forget=((*scope, "daemon-reload"),),
        links=(folder / f"{target}.wants" / UNIT_NAME,),
    )


def make_launchd(plan: UnitPlan) -> Keeper:
    """An agent of the user that is logged in, or a daemon."""
    domain = "system" if plan.user else f"gui/{os.geteuid()}"
    path = launchd_path(is_system=plan.user is not None)
    return Keeper(
        name="launchd",
        path=path,
        text=make_launchd_plist(plan),
        probe=("launchctl", "print", domain),
        load=(("launchctl", "bootstrap", domain, str(path)),),
        unload=(("launchctl", "bootout", f"{domain}/{LABEL}"),),
    )


def install(keeper: Keeper, settings: Settings, terminal: Terminal) -> None:
    """Write the unit, start it now, and enable it.

    Raises:
        ClusterError: the service runs by hand, systemd or launchd does not run, or the file is not ours.
    """
    is_there = _is_ours(keeper)
    if not is_there and read_service(settings).holder:
        raise ClusterError(
            f"the service already runs without {keeper.name}: ./launch.sh stop, then "
            "./launch.sh service install"
        )
    if not _succeeds(keeper.probe):
        raise ClusterError(
            f"{keeper.name} does not run here for this user ({' '.join(keeper.probe)} fails), so nothing "
            "would start the unit; nothing was written. ./launch.sh service show prints the unit"
        )
    if is_there:
        _run_all(keeper.unload, is_needed=False)
    _make_log(log_path(settings.log_dir, "supervisor"))
    keeper.path.parent.mkdir(parents=True, exist_ok=True)
    keeper.path.write_bytes(keeper.text)
    keeper.path.chmod(0o644)
    try:
        _run_all(keeper.load, is_needed=True)
    except ClusterError:
        take_away(keeper)
        raise
    terminal.line(f"installed {keeper.path}")
    terminal.line("it starts now, and again after a failure and a reboot: ./launch.sh status")


def remove(keeper: Keeper, terminal: Terminal) -> int:
    """Stop the service and remove the unit; 0 also without a unit."""
    if not _is_ours(keeper):
        terminal.line(f"nothing to remove: {keeper.path} does not exist")
        return 0
    take_away(keeper)
    terminal.line(f"removed {keeper.path}")
    terminal.line("the queue, logs and settings stay; start by hand with: ./launch.sh start")
    return 0


def take_away(keeper: Keeper) -> None:
    """Unload the unit if systemd or launchd runs, and remove its file and links."""
    is_running = _succeeds(keeper.probe)
    if is_running:
        _run_all(keeper.unload, is_needed=False)
    keeper.path.unlink(missing_ok=True)
    for link in keeper.links:
        if link.is_symlink():
            link.unlink()
    if is_running:
        _run_all(keeper.forget, is_needed=False)


def _is_ours(keeper: Keeper) -> bool:
    """True if the unit exists and starts this copy. Raises: ClusterError if it is not ours."""
    try:
        text = keeper.path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    if MARK not in text:
        raise ClusterError(f"{keeper.path} was not written by this program: rename it first")
    if str(ROOT / "launch.sh") not in text.replace("%%", "%"):
        raise ClusterError(f"{keeper.path} starts another copy of this program: remove it from there first")
    return True


def _make_log(path: Path) -> None:
    """Make the log that the unit appends to: private, and owned by the service's user."""
    who = owner()
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    if os.geteuid() == 0:
        for place in (*made, path):
            os.chown(place, who.pw_uid, who.pw_gid)


def _show_linger(terminal: Terminal) -> None:
    """Show how to keep a user's units running without a login, unless lingering is on."""
    name = owner().pw_name
    shown = _run(("loginctl", "show-user", name, "--property=Linger"))
    if shown is None or "Linger=yes" not in shown.stdout:
        terminal.line("to start it at boot, before you log in, and keep it after you log out:")
        terminal.line(f"  sudo loginctl enable-linger {name}")


def _run_all(commands: Sequence[Sequence[str]], *, is_needed: bool) -> None:
    for command in commands:
        ended = _run(command)
        if is_needed and (ended is None or ended.returncode):
            lines = ended.stderr.strip().splitlines() if ended else []
            raise ClusterError(f"{' '.join(command)}: {lines[-1] if lines else 'failed'}")


def _succeeds(command: Sequence[str]) -> bool:
    ended = _run(command)
    return ended is not None and ended.returncode == 0


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command to its end; None if it is not installed or takes too long."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
