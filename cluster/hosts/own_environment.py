"""Checks that the virtual environment that runs this is still as pip left it. Standard library only.

launch.sh runs it at every command (`python -I cluster/hosts/own_environment.py HOW LIST`), so it lists names
and reads no file but LIST: the packages and their folders after the installation, one name per line.

    keep    write LIST
    whole   exit code 0 if all of LIST exists, and no package was unpacked in part
    gone    exit code 0 if some of LIST is missing
    torn    exit code 0 if a package was unpacked in part
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Sequence
from pathlib import Path

SUFFIX = ".dist-info"
# pip writes RECORD last.
WRITTEN_BY_PIP = ("METADATA", "RECORD")


def list_names(folders: Sequence[str]) -> set[str]:
    """Packages and their folders, without versions."""
    names = {name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}
    infos = {name.partition("-")[0] + SUFFIX for name in names if name.endswith(SUFFIX)}
    return infos | {name for name in names if name.isidentifier() and name != "__pycache__"}


def find_torn(folders: Sequence[str]) -> list[str]:
    """Packages that were unpacked in part."""
    infos = [path for folder in folders for path in Path(folder).glob(f"*{SUFFIX}")]
    return [path.name for path in infos if any(not (path / name).is_file() for name in WRITTEN_BY_PIP)]


def find_gone(folders: Sequence[str], kept: Path) -> list[str]:
    """The names of the list that are missing; none without a list, as in an older release's environment."""
    try:
        names = set(kept.read_text(encoding="utf-8").splitlines())
    except OSError:
        return []
    return sorted(names - list_names(folders))


def main(arguments: Sequence[str]) -> int:
    """Answer launch.sh; the exit code."""
    how, kept = arguments[0], Path(arguments[1])
    folders = site.getsitepackages()
    if how == "keep":
        kept.write_text("".join(f"{name}\n" for name in sorted(list_names(folders))), encoding="utf-8")
        return 0
    is_gone, is_torn = bool(find_gone(folders, kept)), bool(find_torn(folders))
    answers = {"whole": not is_gone and not is_torn, "gone": is_gone, "torn": is_torn}
    return 0 if answers[how] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
