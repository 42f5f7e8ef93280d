"""Checks the packages of the environment that runs it. workers.py sends it to hosts; the doctor runs it for
this machine's environment.

Compares versions, and the size of every file that pip has listed in a package's RECORD. This finds an
interrupted installation, a disk that was full, or a removed folder, without reading the files.
"""

from __future__ import annotations

import csv
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

SCRIPTS = "../../../bin/"  # of no use to a rank


def main(question: dict[str, Any]) -> None:
    """Print {"trouble"}: a sentence, or null.

    Args:
        question: {"wanted": {package: version}}.
    """
    print(json.dumps({"trouble": find_trouble(question["wanted"])}))


def find_trouble(wanted: dict[str, str]) -> str | None:
    """The first thing that is wrong, or None."""
    for name, version in wanted.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"{name} is not installed"
        if found != version:
            return f"{name} is {found} there and {version} here"
    for package in metadata.distributions():
        if (damaged := find_damaged(package)) is not None:
            return f"{package.name} {package.version} is installed only in part: {damaged}"
    return None


def find_damaged(package: metadata.Distribution) -> str | None:
    """A file of a package that is missing or differs in size from pip's RECORD."""
    record = package.read_text("RECORD")
    if record is None:  # pip writes it last; other installers may do without
        return None if package.read_text("INSTALLER") else "RECORD is missing"
    folder = Path(str(package.locate_file("")))
    for name, _, size in csv.reader(record.splitlines()):
        if not size or name.startswith(SCRIPTS):
            continue
        try:
            there = os.stat(folder / name).st_size
        except OSError:
            return f"{name} is missing"
        if there != int(size):
            return f"{name} has {there} bytes of {size}"
    return None
