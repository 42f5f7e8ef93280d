"""One command of launch.sh, the flags for settings that every command takes, and how a command reads them.

Imports only the standard library at load time: help works before anything is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.terminal import Terminal
    from config import Settings

# Flags that stand for a setting.
SETTING_FLAGS = {
    "model": "MODEL_REPO",
    "ranks": "LOCAL_RANKS",
    "host": "API_HOST",
    "port": "API_PORT",
    "state_dir": "STATE_DIR",
}


@dataclass(frozen=True)
class Command:
    """A command: its name, one line of help, the function that runs it (to an exit code), and its flags."""

    name: str
    help: str
    run: Callable[[argparse.Namespace, Terminal], int]
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None
    after_interrupt: str = ""  # what Ctrl-C leaves, where the command does not print it itself


def command(
    name: str,
    help: str,
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
    *,
    after_interrupt: str = "",
) -> Callable[[Callable[[argparse.Namespace, Terminal], int]], Command]:
    """Make a function a command; it imports what it needs, so that no command loads another's packages."""
    return lambda run: Command(name, help, run, add_flags, after_interrupt)


def make_setting_flags() -> argparse.ArgumentParser:
    """The flags that every command takes: settings, above environment, .env and config.json."""
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("settings")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; may be repeated"
    )
    group.add_argument("--model", metavar="MODEL_REPO", help="Hub name, folder, or builtin:smollm2-135m")
    group.add_argument("--ranks", metavar="N", help="LOCAL_RANKS: ranks on this machine")
    group.add_argument("--host", metavar="HOST", help="API_HOST: address on which the API listens")
    group.add_argument("--port", metavar="PORT", help="API_PORT: port on which the API listens")
    group.add_argument("--state-dir", metavar="FOLDER", help="STATE_DIR: spool, logs and run files")
    return flags


def read_overrides(options: argparse.Namespace) -> dict[str, str]:
    """The settings among the flags, by key."""
    from config.show import parse_overrides

    overrides = parse_overrides(options.set)
    for flag, key in SETTING_FLAGS.items():
        value = getattr(options, flag)
        if value is not None:
            overrides[key] = value
    return overrides


def load(options: argparse.Namespace) -> Settings:
    """The settings with the command's flags. Raises: SettingsError."""
    from config import load_settings

    return load_settings(read_overrides(options))


def load_leniently(options: argparse.Namespace) -> Settings:
    """The same for commands that must work in spite of a bad edit."""
    from config.live import load_for_looking

    return load_for_looking(read_overrides(options))
