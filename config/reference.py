"""Writes what people read about settings, from the class: `config/README.md`, `.env.example`,
`config.example.json`.

`python -m config.reference --write` writes the three files; without it, says which are out of date and
exits with 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from config.fields import About, allowed_values, format_value, json_settings
from config.manager import REPOSITORY_ROOT
from config.settings import Settings

README_HEAD = """\
# Settings

One class, `Settings` in `manager.py`, holds every setting. This page is made from it by
`python -m config.reference --write`; change the class, not the page.

A value comes from the first of these that has one: **command line**, **environment**, **`.env`**,
**`config.json`**, **default**. Both files lie at the top of the repository; `.env.example` and
`config.example.json` hold every key with its default. Keys are written in capitals everywhere.

- `./launch.sh config show` prints every effective value and where it was written (`--json` for programs).
- `./launch.sh config check` names everything that is wrong, with file and line, and exits with 2; with 0 if
  all is well.
- A wrong value or an unknown key in a file stops the start. Other environment variables are ignored. A key or
  value of an earlier release that is gone is warned about and has no effect.
- `.env` is never run by a shell: nothing is expanded in it, and `${NAME}` is refused. Relative paths are
  taken from the folder of `.env`, `~` is the home folder.
- A key that stands twice in a file is refused, with both lines.
- *Live* settings: an edit of a file counts in the running service within two seconds, for what begins from
  then on. For the others `./launch.sh status` says that `./launch.sh restart` is needed. A wrong edit changes
  nothing.
- MiB are 1,048,576 bytes.
"""

ENV_HEAD = """\
# Copy this file to .env and keep the lines you want to change: a line that stays pins its value, even where
# a later release has a better default, and hides the same key in config.json.
# The meaning of each setting is in config/README.md. This file is never run by a shell.
"""

ENV_NOTES: Mapping[str, str] = {
    "API_HOST": "0.0.0.0 listens on every interface. The address of one interface is, for example,\n"
    "192.168.5.1: the first release used it, its author's Thunderbolt address."
}


def make_readme() -> str:
    """Return the text of `config/README.md`."""
    parts = [README_HEAD]
    for group, keys in _groups():
        parts.append(
            f"\n## {group}\n\n| key | default | allowed | change | what it is |\n|---|---|---|---|---|\n"
        )
        parts += [_readme_row(key) for key in keys]
    return "".join(parts)


def make_dotenv_example() -> str:
    """Return the text of `.env.example`."""
    parts = [ENV_HEAD]
    for group, keys in _groups():
        parts.append(f"\n# ---- {group} ----\n")
        for key in keys:
            parts += ["\n", *_dotenv_comment(key), f"{key}={format_value(_default(key))}\n"]
    return "".join(parts)


def make_json_example() -> str:
    """Return the text of `config.example.json`."""
    defaults = json_settings({key: _default(key) for key in Settings.all_keys()})
    return json.dumps(defaults, indent=2, ensure_ascii=False) + "\n"


def files(root: Path = REPOSITORY_ROOT) -> dict[Path, str]:
    """Return each made file with the text it should have."""
    return {
        root / "config" / "README.md": make_readme(),
        root / ".env.example": make_dotenv_example(),
        root / "config.example.json": make_json_example(),
    }


def main(arguments: Sequence[str]) -> int:
    """Write the files, or name those that are out of date."""
    if list(arguments) not in ([], ["--write"]):
        print("usage: python -m config.reference [--write]", file=sys.stderr)
        return 2
    stale = [
        path
        for path, text in files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if arguments:
            path.write_text(files()[path], encoding="utf-8")
        print(f"{path.name}: {'written' if arguments else 'out of date'}")
    return 1 if stale and not arguments else 0


def _groups() -> list[tuple[str, list[str]]]:
    return [
        (group, list(keys))
        for group, keys in groupby(Settings.all_keys(), key=lambda key: Settings.about(key).group)
    ]


def _default(key: str) -> object:
    return Settings.model_fields[key.lower()].default


def _allowed(key: str) -> str:
    unit = Settings.about(key).unit
    allowed = allowed_values(Settings.model_fields[key.lower()])
    return f"{allowed} {unit}" if unit else allowed


def _readme_row(key: str) -> str:
    default = format_value(_default(key))
    shown = f"`{default}`" if default else "none"
    told = Settings.about(key)
    return f"| `{key}` | {shown} | {_allowed(key)} | {_change(told)} | {told.description} |\n"


def _change(told: About) -> str:
    return "live" if told.is_live else "restart"


def _dotenv_comment(key: str) -> list[str]:
    told = Settings.about(key)
    lines = [told.description, f"Allowed: {_allowed(key)}. Change: {_change(told)}."]
    if key in ENV_NOTES:
        lines += ENV_NOTES[key].splitlines()
    return [f"# {line}\n" for line in lines]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
