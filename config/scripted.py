"""The scripted model: `MODEL_REPO=scripted:FILE` answers with the texts of a JSON file, without weights.

Front door, chat template, tokenizer (that of builtin:smollm2-135m), spool, ring and sampling are real. FILE
is relative to the folder of `.env`, as other paths in settings are. It holds a list of rules. The first rule
that matches a prompt gives the answer; a prompt that no rule matches gets "(no rule matches)".

    [
      {"when": "Add a greeting to hello.py", "after": 0, "say": "<tool_call>\\n{\\"name\\": \\"read\\", …"},
      {"when": "print(", "after": 1, "say": "<tool_call>\\n{\\"name\\": \\"edit\\", …"},
      {"after": 2, "say": "hello.py greets now.", "pause_us": 20000},
      {"anywhere": "generate a title", "say": "A greeting"}
    ]

    say        the answer, as the model would write it: a tool call stands in it in the model's own format
    when       text that the newest turns contain: those behind the last answer, in a first request all turns
    regex      a regular expression that the newest turns contain (Python's `re.search`)
    anywhere   text that any turn contains, the system's with its list of tools too
    after      the number of earlier answers in the prompt: turns of the role assistant
    pause_us   microseconds between tokens

All conditions of a rule must hold; a rule without conditions always matches. A prompt without turns (raw
text, as /v1/completions sends it) counts as one turn, and the answer continues after the longest beginning of
`say` with which the text ends. A request whose grammar forbids the scripted token gets the best other one.

This module reads the file and finds the rule. No MLX, no tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SCRIPTED_PREFIX = "scripted:"
ANSWERING_ROLE = "assistant"


@dataclass(frozen=True)
class Turn:
    """One turn of a prompt; the role of raw text is empty."""

    role: str
    text: str


@dataclass(frozen=True)
class Rule:
    """An answer and the conditions under which it is given."""

    say: str
    when: str = ""
    regex: str = ""
    anywhere: str = ""
    after: int | None = None
    pause_us: int = 0

    def matches(self, turns: Sequence[Turn]) -> bool:
        """Whether all conditions hold for a prompt."""
        answers = [index for index, turn in enumerate(turns) if turn.role == ANSWERING_ROLE]
        newest = "\n".join(turn.text for turn in turns[answers[-1] + 1 if answers else 0 :])
        return (
            self.after in (None, len(answers))
            and self.when in newest
            and re.search(self.regex, newest) is not None
            and any(self.anywhere in turn.text for turn in turns)
        )


NO_RULE = Rule("(no rule matches)")


def find_rule(rules: Sequence[Rule], turns: Sequence[Turn]) -> Rule:
    """Return the first rule that matches a prompt."""
    return next((rule for rule in rules if rule.matches(turns)), NO_RULE)


def script_path(model_repo: str, root: Path) -> Path:
    """Return the path of the file that `scripted:FILE` names.

    Raises:
        ValueError: it names none.
    """
    name = model_repo.removeprefix(SCRIPTED_PREFIX)
    if not name:
        raise ValueError("scripted: needs a file: scripted:FILE")
    return (root / Path(name).expanduser()).resolve()


def read_script(path: Path) -> tuple[Rule, ...]:
    """Read the rules of a file.

    Raises:
        ValueError: the message names the file, the place in it, and what is allowed.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} is not a list of rules")
    return tuple(_read_rule(entry, f"{path}, rule {number}") for number, entry in enumerate(found, 1))


def _read_rule(entry: Any, place: str) -> Rule:
    kinds = {field.name: int if field.name in ("after", "pause_us") else str for field in fields(Rule)}
    if not isinstance(entry, dict) or "say" not in entry:
        raise ValueError(f"{place}: a rule is an object with the key say")
    for key, value in entry.items():
        if key not in kinds:
            raise ValueError(f"{place} has the unknown key {key!r}; allowed: {', '.join(kinds)}")
        if type(value) is not kinds[key] or (type(value) is int and value < 0):
            wanted = "a text" if kinds[key] is str else "a whole number from 0"
            raise ValueError(f"{place}: {key} must be {wanted}, not {value!r}")
    try:
        re.compile(entry.get("regex", ""))
    except re.error as error:
        raise ValueError(f"{place}: regex is no regular expression: {error}") from None
    return Rule(**entry)
