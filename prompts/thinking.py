"""How much a model is to think: from a reasoning effort to the variables that its chat template asks for.

A template may have a switch (`enable_thinking`, `thinking`), a level (`reasoning_effort`), both, or neither.
Knows no messages.
"""

import re
from typing import Any

from prompts.chat_template import ChatTemplate

_SWITCHES = ("enable_thinking", "thinking")
_LEVEL = "reasoning_effort"
_COMMON_LEVELS = frozenset({"low", "medium", "high"})  # what templates with a level take without naming them
_TAGS = re.compile(r"think>|think:start|\[THINK\]")


class EffortRefused(Exception):
    """The model cannot be told to think that much, or that little."""


def effort_variables(template: ChatTemplate, effort: str) -> dict[str, Any]:
    """Return the template's variables for an effort: none, minimal, low, medium or high.

    Raises:
        EffortRefused: the template has nothing that this effort changes. Only "none" is always right for a
            model that does not think.
    """
    found = {name: effort != "none" for name in _SWITCHES if name in template.variables}
    has_level = _LEVEL in template.variables
    if has_level and (effort in _COMMON_LEVELS or effort in template.constants):
        return {**found, _LEVEL: effort}
    if found:
        return dict(found)
    if has_level:
        raise EffortRefused(f"this model takes no effort {effort!r}: its chat template has other levels")
    if _TAGS.search(template.literals):
        raise EffortRefused("how much this model thinks cannot be set: its chat template has no switch")
    if effort != "none":
        raise EffortRefused("this model does not think before it answers: only 'none' is possible")
    return {}
