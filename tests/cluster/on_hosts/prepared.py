"""A worker's environment without pip: a real virtual environment that borrows this one's packages."""

from __future__ import annotations

import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from cluster.hosts.worker_setup import MARK, environment_mark
from tests.cluster.on_hosts.namespaces import NamespaceHost

WORKER_DIR = ".local/share/mlx-ring-service"


def prepare_environment(host: NamespaceHost, *, versions: Mapping[str, str] | None = None) -> Path:
    """Make WORKER_DIR/venv on a host as if pip had; `versions` are told instead of those installed here."""
    folder = host.home / WORKER_DIR / "venv"
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    venv.EnvBuilder(symlinks=True, clear=True).create(folder)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    for library in (Path(sys.prefix) / "lib").glob("*.so*"):  # the fast BLAS
        (folder / "lib" / library.name).symlink_to(library)
    for name, version in (versions or {}).items():
        told = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        told.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (told / "METADATA").write_text(metadata, encoding="utf-8")
    (folder / MARK).write_text(environment_mark() + "\n", encoding="utf-8")
    return folder
