"""A reasoning effort reaches the chat template, or is refused."""

from pathlib import Path
from typing import Any

import pytest

from prompts.tokenizer import EffortRefused, MessagesRefused, PromptTokenizer
from tests.services.frontdoor_service import make_model_folder, running_service

SAID = "{{ messages[0].content }}|"
TEMPLATES = {
    "qwen": SAID
    + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
    "smollm": "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    + SAID
    + "{% if not enable_thinking %}<think></think>{% endif %}",
    "deepseek": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + SAID
    + "{% if thinking %}<think>{% else %}</think>{% endif %}",
    "gpt-oss": "{% macro top() %}"
    "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ reasoning_effort }}{% endmacro %}{{ top() }}" + SAID,
    "named": "{% set effort = reasoning_effort | default('high') %}"
    "{% if effort not in ['none', 'high'] %}{{ raise_exception('none or high') }}{% endif %}"
    + SAID
    + "{{ effort }}",
    "both": SAID + "{{ enable_thinking }} {{ reasoning_effort }}",
    "always": SAID + "<think>",
    "history": "{{ messages[0].content.split('</think>')[-1] }}|",
    "never": SAID + "think step by step",
    "own": "{% set enable_thinking = true %}" + SAID,
}
REFUSED = None


@pytest.mark.parametrize(
    ("name", "effort", "text"),
    [
        ("qwen", None, "hi|"),
        ("qwen", "none", "hi|<think></think>"),
        *[("qwen", effort, "hi|") for effort in ("minimal", "low", "medium", "high")],
        ("smollm", "none", "hi|<think></think>"),
        ("smollm", "low", "hi|"),
        ("deepseek", None, "hi|</think>"),
        ("deepseek", "none", "hi|</think>"),
        ("deepseek", "high", "hi|<think>"),
        ("gpt-oss", None, "mediumhi|"),
        ("gpt-oss", "high", "highhi|"),
        ("gpt-oss", "none", REFUSED),
        ("gpt-oss", "minimal", REFUSED),
        ("named", "none", "hi|none"),
        ("named", "high", "hi|high"),
        ("named", "low", REFUSED),
        ("named", "minimal", REFUSED),
        ("both", "none", "hi|False "),
        ("both", "low", "hi|True low"),
        ("always", None, "hi|<think>"),
        ("always", "none", REFUSED),
        ("always", "low", REFUSED),
        ("history", "none", REFUSED),
        ("never", "none", "hi|think step by step"),
        ("never", "high", REFUSED),
        ("own", "none", "hi|"),
        ("own", "low", REFUSED),
    ],
)
def test_an_effort_changes_the_chat_or_is_refused(
    tmp_path: Path, name: str, effort: str | None, text: str | None
) -> None:
    """By a switch, by a level, or by both; "none" asks nothing of a model that does not think."""
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template=TEMPLATES[name]))
    messages = [{"role": "user", "content": "hi"}]
    if text is REFUSED:
        with pytest.raises(EffortRefused):
            tokenizer.render(messages, effort)
    else:
        assert tokenizer.render(messages, effort).text == text


def test_messages_that_are_refused_are_not_blamed_on_the_effort(tmp_path: Path) -> None:
    """The template refuses them without it, too."""
    template = "{{ raise_exception('roles must alternate') }}{{ enable_thinking }}"
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template=template))
    with pytest.raises(MessagesRefused, match="alternate"):
        tokenizer.render([{"role": "user", "content": "hi"}], "none")


def test_an_effort_holds_where_control_tokens_are_spelled(tmp_path: Path) -> None:
    """The second rendering is of the same effort."""
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template=TEMPLATES["qwen"]))
    chat = tokenizer.render([{"role": "user", "content": "<|end|>"}], "none")
    assert (chat.text, chat.literals) == ("<|end|>|<think></think>", (0,))


@pytest.mark.parametrize(
    ("name", "effort", "text"),
    [
        ("qwen", "none", "hi|<think></think>"),
        ("always", "none", REFUSED),
        ("qwen", "much", REFUSED),
        ("qwen", 1, REFUSED),
    ],
)
def test_a_client_switches_thinking_off_or_is_told_that_it_cannot(
    tmp_path: Path, name: str, effort: Any, text: str | None
) -> None:
    """The chat in the spool shows it; a refusal names the field."""
    model = make_model_folder(tmp_path / "model", template=TEMPLATES[name])
    body = {"messages": [{"role": "user", "content": "hi"}], "reasoning_effort": effort}
    with running_service(tmp_path / "service", {"MODEL_REPO": str(model)}) as service:
        answer = service.http.post("/v1/chat/completions", json=body)
        if text is REFUSED:
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reasoning_effort")
        else:
            assert answer.status_code == 200
            assert service.engine.claimed[-1].text == text
