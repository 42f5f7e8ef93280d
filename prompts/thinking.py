"""Converts a reasoning effort to the variables of the model's chat template.

A template may have a switch (`enable_thinking`, `thinking`), a level (`reasoning_effort`), both, or neither.
Knows no messages.
"""

import re
from typing import Any

from prompts.chat_template import ChatTemplate

_SWITCHES = ("enable_thinking", "thinking")
_LEVEL = "reasoning_effort"
_COMMON_LEVELS = frozenset({"low", "medium", "high"})  # templates with a level take these without naming them
_TAGS = re.compile(r"think>|think:start|\[THINK\]")


class EffortRefused(Exception):
    """The model's chat template does not support this effort."""


def effort_variables(template: ChatTemplate, effort: str) -> dict[str, Any]:
    """Return the template's variables for an effort: none, minimal, low, medium, high, xhigh or max.

    Raises:
        EffortRefused: the template has no variable for this effort. A model that does not think accepts
            "none".
    """
    found = {name: effort != "none" for name in _SWITCHES if name in template.variables}
    has_level = _LEVEL in template.variables
    if has_level and (effort in _COMMON_LEVELS or effort in template.constants):
        return {**found, _LEVEL: effort}
    if found:
        return dict(found)
    if has_level:
        raise EffortRefused(
            f"this model does not support the effort {effort!r}: its chat template has other levels"
        )
    if _TAGS.search(template.literals):
        raise EffortRefused("this model's effort cannot be set: its chat template has no switch")
    if effort != "none":
        raise EffortRefused("this model does not think before it answers: only 'none' is allowed")
    return {}
