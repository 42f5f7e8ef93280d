"""Writes the reference of the settings from the class: `config/README.md`, `.env.example` and
`config.example.json`.

`python -m config.reference --write` writes the three files. Without `--write` it names the files that are out
of date and exits with 1. Knows no key by name, except for notes in `.env.example`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from config.fields import About, allowed_values, format_value, json_value
from config.manager import REPOSITORY_ROOT
from config.settings import Settings

README_HEAD = """\
# Settings

The class `Settings` in `settings.py` holds every setting. `python -m config.reference --write` makes this
page from it; change the class, not the page.

A value comes from the first of these sources that has one: **command line**, **environment**, **`.env`**,
**`config.json`**, **default**. Both files lie at the top of the repository; `.env.example` and
`config.example.json` hold every key with its default. Write keys in capitals everywhere.

- `./launch.sh config show` prints every effective value and its source (`--json` for programs).
- `./launch.sh config check` names every problem with file and line. It exits with 2, or with 0 without
  problems.
- A wrong value or an unknown key in a file stops the start. Other environment variables are ignored. A
  retired key or value of an earlier release causes a warning and has no effect.
- No shell runs `.env`: nothing is expanded in it, and `${NAME}` is refused. Relative paths start from the
  folder of `.env`; `~` is the home folder.
- A key that appears twice in a file is refused, with both lines.
- *Live* settings: the running service applies an edit of a file within two seconds, to new requests and
  connections. For other settings `./launch.sh status` says that `./launch.sh restart` is needed. A wrong edit
  changes nothing.
- A MiB is 1,048,576 bytes.
"""

ENV_HEAD = """\
# Copy this file to .env and keep only the lines that you change: every line sets its value, even where a
# later release has a better default, and overrides the same key in config.json.
# config/README.md describes each setting. No shell runs this file.
"""

ENV_NOTES: Mapping[str, str] = {
    "API_HOST": "0.0.0.0 listens on every interface. An address such as 192.168.5.1 (the one that the\n"
    "first release used) listens on one interface."
}


def make_readme() -> str:
    """Return the text of `config/README.md`."""
    parts = [README_HEAD]
    for group, keys in _groups():
        parts.append(
            f"\n## {group}\n\n| key | default | allowed | change | description |\n|---|---|---|---|---|\n"
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
    defaults = {key: json_value(_default(key)) for key in Settings.all_keys()}
    return json.dumps(defaults, indent=2, ensure_ascii=False) + "\n"


def files(root: Path = REPOSITORY_ROOT) -> dict[Path, str]:
    """Return each generated file with its text."""
    return {
        root / "config" / "README.md": make_readme(),
        root / ".env.example": make_dotenv_example(),
        root / "config.example.json": make_json_example(),
    }


def main(arguments: Sequence[str]) -> int:
    """Write the files, or name the files that are out of date."""
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
    return Settings.fields()[key].default


def _allowed(key: str) -> str:
    unit = Settings.about(key).unit
    allowed = allowed_values(Settings.fields()[key])
    return f"{allowed} {unit}" if unit else allowed


def _readme_row(key: str) -> str:
    default = format_value(_default(key))
    shown = f"`{default}`" if default else "none"
    about = Settings.about(key)
    return f"| `{key}` | {shown} | {_allowed(key)} | {_change(about)} | {about.description} |\n"


def _change(about: About) -> str:
    return "live" if about.is_live else "restart"


def _dotenv_comment(key: str) -> list[str]:
    about = Settings.about(key)
    lines = [about.description, f"Allowed: {_allowed(key)}. Change: {_change(about)}."]
    if key in ENV_NOTES:
        lines += ENV_NOTES[key].splitlines()
    return [f"# {line}\n" for line in lines]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
