"""The doctor's checks of this machine: packages, BLAS, products, files, secret, API port, model.

Changes nothing, except in `make_private`. Knows nothing of other hosts.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from cluster import ports
from cluster.commands.service_unit import find_private_folder, launchd_path
from cluster.disk import find_disk_trouble
from cluster.errors import ClusterError
from cluster.findings import Finding, Level
from cluster.hosts.host_checks import COMPARED, DOCTOR_FIX, describe_versions
from cluster.hosts.hosts import LOCAL_NAME
from cluster.hosts.remote_scripts.environment import find_trouble
from cluster.hosts.worker_setup import find_versions
from cluster.supervisor.service import Service
from config import ModelNotReady, Settings
from config.checks import start_problems
from config.limits import limit_problems
from config.model_path import is_folder_name, is_hub_name, missing_files

ROOT = Path(__file__).resolve().parent.parent.parent.parent
TRIAL_LIMIT_S = 30.0
PREPARE = ".venv/bin/python -m distributed.prepare"
# The loader must run before MLX, so in a process of its own; it warns on standard error if it finds no BLAS.
BLAS_TRIAL = (
    "import sys\nfrom distributed.backends.cpu.blas import BlasNotFound, load_fast_blas\n"
    "try: print(load_fast_blas(sys.argv[1], 1))\nexcept BlasNotFound as error: sys.exit(str(error))"
)
# Prints as JSON what multiplies packed weights, or why nothing does and the fix; code for another processor
# would crash the process.
KERNELS_TRIAL = (
    "import json\n"
    "from distributed.backends.cpu.compiling import CannotCompile\n"
    "from distributed.backends.cpu.kernels import Kernels\n"
    "try: print(json.dumps({'name': str(Kernels())}))\n"
    "except CannotCompile as error: print(json.dumps({'reason': str(error), 'fix': error.fix}))"
)


def check_this_machine(settings: Settings, service: Service) -> list[Finding]:
    """All checks of this machine that need no facts."""
    return [
        *(
            _finding("settings", "failed", str(problem), "./launch.sh config check")
            for problem in start_problems(settings)
        ),
        *check_limits(settings),
        *check_disk(settings),
        check_packages(),
        *check_blas(settings.cpu_blas),
        *(check_products(settings.cpu_products) if settings.cpu_layers == "numpy" else []),
        *check_private_files(settings),
        *check_private_folder(settings),
        check_api_port(settings, service),
        check_model(settings),
    ]


def check_limits(settings: Settings) -> list[Finding]:
    """This user's limits allow a rank to start."""
    found = (sentence.rpartition(": ") for sentence in limit_problems(settings))
    return [_finding("limits", "failed", text, fix) for text, _, fix in found]


def check_disk(settings: Settings) -> list[Finding]:
    """The disk of STATE_DIR has room for a request."""
    trouble = find_disk_trouble(settings.state_dir)
    if trouble is None:
        return []
    fix = "make room there, or choose another folder with STATE_DIR in .env"
    return [_finding("disk", "failed", trouble, fix)]


def check_packages() -> Finding:
    """The packages that ranks on this machine import are complete."""
    found = find_versions(COMPARED)
    missing = [name for name in COMPARED if name not in found]
    if missing:
        fix = f"{sys.executable} -m pip install -r requirements.txt"
        return _finding("packages", "failed", f"not installed: {', '.join(missing)}", fix)
    if trouble := find_trouble({}):
        fix = f"rm -r {sys.prefix}, then ./launch.sh doctor makes a new one"
        # A file of another size may have been edited on purpose.
        level: Level = "failed" if trouble.endswith("is missing") else "note"
        return _finding("packages", level, f"{sys.prefix} is incomplete: {trouble}", fix)
    return _finding("packages", "ok", describe_versions(found))


def check_blas(choice: str) -> list[Finding]:
    """The fast BLAS loads (Linux only)."""
    if sys.platform == "darwin" or choice == "off":
        return []
    tried = _try(BLAS_TRIAL, choice)
    if tried is None:
        return [_finding("blas", "failed", f"the BLAS did not load within {TRIAL_LIMIT_S:.0f} s")]
    name = tried.stdout.strip()
    if tried.returncode == 0 and name:
        return [_finding("blas", "ok", f"{name} loads")]
    if tried.returncode == 0:
        text = "no fast BLAS was found: without a GPU, matrix products are many times slower"
        return [_finding("blas", "note", text, "sudo apt-get install libopenblas0-pthread")]
    lines = tried.stderr.strip().splitlines()
    return [_finding("blas", "failed", lines[-1] if lines else f"exit code {tried.returncode}")]


def check_products(choice: str) -> list[Finding]:
    """Compiled code multiplies packed weights (Linux only)."""
    if sys.platform == "darwin" or choice == "blas":
        return []
    tried = _try(KERNELS_TRIAL)
    if tried is None or tried.returncode != 0:
        how = "did not load in time" if tried is None else f"ended its process with code {tried.returncode}"
        text = f"the compiled code for packed weights {how}"
        return [_finding("products", "failed", text, "set CPU_PRODUCTS=blas in .env to run without it")]
    found = json.loads(tried.stdout)
    if "name" in found:
        return [_finding("products", "ok", f"packed weights by {found['name']}")]
    level: Level = "failed" if choice != "auto" else "note" if found["fix"] else "ok"
    return [_finding("products", level, f"products by the BLAS ({found['reason']})", found["fix"])]


def _try(code: str, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Run a trial in a process of its own; None if it takes too long."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TRIAL_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None


def check_private_files(settings: Settings) -> list[Finding]:
    """Only we can write to STATE_DIR and read its private files."""
    findings = [check_state_dir(settings.state_dir)]
    for path, mode in list_open(settings):
        text = f"{path} can be {'changed' if path == settings.state_dir else 'read'} by others"
        findings.append(_finding("private", "failed", text, f"chmod {mode:o} {path} (or {DOCTOR_FIX})"))
    return findings


def list_open(settings: Settings) -> list[tuple[Path, int]]:
    """The paths to which others have too many rights, with the mode they should have.

    Others may list STATE_DIR, as models are no secret; prompts, logs and the secret are private.
    """
    folders = (settings.spool_dir, settings.run_dir, settings.log_dir)
    wanted = [*((folder, 0o700) for folder in folders), (settings.ring_secret_path, 0o600)]
    found = [(path, mode) for path, mode in wanted if has_rights(path, 0o077)]
    return [(settings.state_dir, 0o755), *found] if has_rights(settings.state_dir, 0o022) else found


def check_state_dir(folder: Path) -> Finding:
    """STATE_DIR belongs to us, or can be made."""
    if not folder.exists():
        above = next(path for path in folder.parents if path.exists())
        if os.access(above, os.W_OK | os.X_OK):
            return _finding("state", "ok", f"{folder} will be made")
        text = f"STATE_DIR {folder} cannot be made: {above} is not writable"
        return _finding("state", "failed", text, f"sudo install -d -o $USER -m 700 {folder}")
    if not folder.is_dir():
        text = f"STATE_DIR {folder} is not a folder"
        return _finding("state", "failed", text, "set STATE_DIR in .env to a folder")
    if folder.stat().st_uid != os.geteuid():
        can_write = os.access(folder, os.W_OK | os.X_OK)
        text = f"STATE_DIR {folder} belongs to uid {folder.stat().st_uid}, not to us (uid {os.geteuid()})"
        return _finding("state", "note" if can_write else "failed", text, f"sudo chown -R $USER {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return _finding("state", "failed", f"STATE_DIR {folder} cannot be written", f"chmod u+rwx {folder}")
    return _finding("state", "ok", f"{folder} is ours")


def check_private_folder(settings: Settings) -> list[Finding]:
    """launchd can read the service's folders (macOS only)."""
    trouble = find_private_folder(settings) if sys.platform == "darwin" else None
    if trouble is None:
        return []
    is_installed = any(launchd_path(is_system=is_system).exists() for is_system in (False, True))
    text = trouble if is_installed else f"{trouble}: a start from Terminal works, `service install` does not"
    fix = "move it to another folder of your home, then ./launch.sh service install"
    return [_finding("launchd", "failed" if is_installed else "note", text, fix)]


def has_rights(path: Path, mask: int) -> bool:
    """True if the file exists and its mode has one of these bits."""
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & mask)
    except OSError:
        return False


def make_private(settings: Settings) -> list[str]:
    """Close private files and folders to others; returns the changes. A folder like /tmp stays shared."""
    changed = []
    for path, mode in list_open(settings):
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & stat.S_ISVTX:
            path.chmod(mode)
            changed.append(f"chmod {mode:o} {path}")
    return changed


def check_api_port(settings: Settings, service: Service) -> Finding:
    """The front door's port is free, or our own front door uses it."""
    host, port = settings.api_host, settings.api_port
    if service.holder and service.api_address == (host, port):
        return _finding("api", "ok", f"{service.url} is served by this service ({service.state})")
    try:
        ports.listen(host, port).close()
    except ClusterError as error:
        sentence, _, fix = str(error).partition(": ")
        return _finding("api", "failed", sentence, fix)
    return _finding("api", "ok", f"port {port} on {host} is free")


def check_model(settings: Settings) -> Finding:
    """The model's files are on this machine."""
    verb = "fetches" if is_hub_name(settings.model_repo, settings.root) else "makes"
    text = f"{settings.model_repo} is not on this machine yet: `start` {verb} it, or do it now"
    prepare = f"MODEL_REPO={settings.model_repo} STATE_DIR={settings.state_dir} {PREPARE}"
    is_folder = is_folder_name(settings.model_repo, settings.root)
    fix = "correct MODEL_REPO in .env, or copy the files there"
    try:
        missing = missing_files(settings.model_dir)
    except ModelNotReady as error:
        return (
            _finding("model", "failed", str(error), fix)
            if is_folder
            else _finding("model", "note", text, prepare)
        )
    if missing and is_folder:
        text = f"{settings.model_dir} is not a complete model: {', '.join(missing[:3])} missing"
        return _finding("model", "failed", text, fix)
    if missing:
        return _finding("model", "note", text, prepare)
    return _finding("model", "ok", f"{settings.model_repo} is in {settings.model_dir}")


def _finding(check: str, level: Level, text: str, fix: str = "") -> Finding:
    return Finding(LOCAL_NAME, check, level, text, fix)
