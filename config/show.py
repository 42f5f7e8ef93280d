"""The command `launch.sh config`: `show` prints the effective settings, `check` names the problems.

Exit codes: 0 no problem, 2 a problem. Secrets are masked. Knows nothing of a running service.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from config.checks import start_problems
from config.errors import Problem, SettingsError
from config.fields import json_value
from config.manager import REPOSITORY_ROOT, load_settings
from config.settings import MASK, Settings

OK, WRONG = 0, 2


def main(
    arguments: Sequence[str], *, root: Path | None = None, environ: Mapping[str, str] | None = None
) -> int:
    """Run `show` or `check` and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.sh config", description="Show or check the effective settings."
    )
    parser.add_argument("command", choices=("show", "check"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as on the command line of start"
    )
    options = parser.parse_args(arguments)
    try:
        settings = load_settings(parse_overrides(options.set), root=root, environ=environ)
    except SettingsError as error:
        return _report(error.problems, root or REPOSITORY_ROOT, as_json=options.json)
    if options.command == "check":
        return _report(start_problems(settings), settings.root, as_json=options.json)
    print(json.dumps(describe(settings), indent=2) if options.json else make_table(settings))
    return OK


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """Parse `KEY=VALUE` words of a command line. Raises SettingsError for other words."""
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise SettingsError(Problem("command line", f"{word!r} is not KEY=VALUE") for word in wrong)
    pairs = (word.split("=", 1) for word in words)
    return {key.strip(): value for key, value in pairs}


def make_table(settings: Settings) -> str:
    """Return a text table of key, effective value and source."""
    rows = [("KEY", "VALUE", "FROM")]
    rows += [(key, settings.shown(key) or "(none)", str(settings.origin(key))) for key in settings.all_keys()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows)


def describe(settings: Settings) -> dict[str, dict[str, object]]:
    """Return the settings as data: by key, the value, its source and its description."""
    return {key: _describe_one(settings, key) for key in settings.all_keys()}


def _describe_one(settings: Settings, key: str) -> dict[str, object]:
    about = settings.about(key)
    value = json_value(settings.value(key))
    return {
        "value": MASK if about.is_secret and value is not None else value,
        "from": str(settings.origin(key)),
        "group": about.group,
        "unit": about.unit,
        "change": "live" if about.is_live else "restart",
        "description": about.description,
    }


def _report(problems: Sequence[Problem], root: Path, *, as_json: bool) -> int:
    if as_json:
        found = [{"from": item.origin, "key": item.key, "message": item.sentence} for item in problems]
        print(json.dumps({"ok": not problems, "problems": found}, indent=2))
    elif problems:
        print(f"The settings in {root} are wrong:", file=sys.stderr)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
    else:
        print(f"The settings in {root} are valid.")
    return WRONG if problems else OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
