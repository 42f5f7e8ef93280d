"""The chat templates that families ship render as transformers renders them."""

import json
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from prompts import deepseek_v32_template
from prompts.answer_parts import Tool
from prompts.chat_template import ChatTemplate
from prompts.mlx_lm_import import import_mlx_lm
from prompts.model_files import read_templates
from prompts.tokenizer import PromptTokenizer
from tests.fakes.family_templates import FAMILY_TEMPLATES
from tests.services.frontdoor_service import make_model_folder

SYSTEM: dict[str, Any] = {"role": "system", "content": "be brief"}
USER: dict[str, Any] = {"role": "user", "content": "Wie heiß? <b>"}
TURNS = [SYSTEM, USER, {"role": "assistant", "content": "ja\n"}, USER]
ARGUMENTS = {"city": "Größe", "days": 3, "near": ["a b"]}
CALL = {
    "id": "functions.weather:0",
    "type": "function",
    "function": {"name": "weather", "arguments": ARGUMENTS},
}
CALLED: list[dict[str, Any]] = [
    *TURNS,
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": CALL["id"]},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Größe", "Rom"]},
        "days": {"type": "integer"},
        "near": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}
TOOLS = [Tool("weather", "the weather", SCHEMA)]
CALLERS = [name for name in FAMILY_TEMPLATES if name not in ("gemma3", "smollm3")]  # these write no calls


@pytest.fixture(params=FAMILY_TEMPLATES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    return request.param, make_model_folder(tmp_path, template=FAMILY_TEMPLATES[request.param])


def test_a_chat_renders(family: tuple[str, Path]) -> None:
    """Every text once and in its place, plain, and today's date where the template writes one."""
    name, folder = family
    text = PromptTokenizer(folder).render(TURNS).text
    first, second = text.find(USER["content"]), text.rfind(USER["content"])
    assert text.index("be brief") < first < text.index("ja") < second if name != "smollm3" else first < second
    if "strftime_now" in FAMILY_TEMPLATES[name] and name != "devstral":
        assert str(datetime.now().year) in text


@pytest.mark.parametrize("name", CALLERS)
def test_calls_and_results_are_in_the_templates_own_form(tmp_path: Path, name: str) -> None:
    """None falls back to text, whether it takes arguments as objects or as texts, and refuses None or not."""
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template=FAMILY_TEMPLATES[name]))
    text = tokenizer.render(CALLED, tools=TOOLS).text
    tail = text[text.rindex(USER["content"]) :]
    assert "<tool_response>" not in tail or name in ("qwen3", "glm45")
    assert "weather" in tail
    assert "Größe" in tail
    assert '\\"' not in tail  # arguments are JSON once
    assert "rain" in tail


@pytest.mark.slow
def test_texts_equal_those_of_transformers(family: tuple[str, Path]) -> None:
    """Plain, with tools, and with a call and its result, in the form that each template takes."""
    from transformers import AutoTokenizer

    name, folder = family
    ours = PromptTokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def render(turns: list[dict[str, Any]], *, has_tools: bool) -> str:
        tools = [tool.for_template() for tool in TOOLS] if has_tools else None
        text = theirs.apply_chat_template(turns, tools=tools, add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        return text

    assert ours.render(TURNS).text == render(TURNS, has_tools=False)
    if ours.formats.has_template_tools:
        assert ours.render(TURNS, tools=TOOLS).text == render(TURNS, has_tools=True)
    if name in CALLERS:
        turns = CALLED
        if name == "deepseek_v31":
            as_text = {"name": "weather", "arguments": '{"city": "Größe", "days": 3, "near": ["a b"]}'}
            called = {**CALLED[-2], "content": "", "tool_calls": [{**CALL, "function": as_text}]}
            turns = [*TURNS, called, CALLED[-1]]
        if name == "devstral":  # Mistral's ids have nine digits
            turns = [*TURNS, {**CALLED[-2], "tool_calls": [{**CALL, "id": "000000000"}]}, CALLED[-1]]
        assert ours.render(CALLED, tools=TOOLS).text == render(turns, has_tools=True)


@pytest.mark.slow
def test_the_template_in_the_place_of_code_writes_what_mlx_lm_writes() -> None:
    """DeepSeek-V3.2, with and without tools, calls, results and thinking."""
    theirs = import_mlx_lm(f"chat_templates.{deepseek_v32_template.NAME}").apply_chat_template
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False)
    as_text = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    ours, answered = ChatTemplate(deepseek_v32_template.TEMPLATE), {"role": "assistant", "content": "ok"}

    def chat(call: dict[str, Any], num_calls: int, *more: dict[str, Any]) -> list[dict[str, Any]]:
        called = [{**CALLED[-2], "tool_calls": [call] * num_calls}, *[CALLED[-1]] * num_calls]
        return [*TURNS, *(called if num_calls else ()), *more]

    for is_thinking, num_calls, more in product((False, True), (0, 1, 2), ((), (answered, USER))):
        for tools in (None, [tool.for_template() for tool in TOOLS] * 2):
            text = ours.render(chat(CALL, num_calls, *more), {"enable_thinking": is_thinking}, tools)
            options = {"enable_thinking": is_thinking, "tools": tools, "add_generation_prompt": True}
            assert text == theirs(chat(as_text, num_calls, *more), **options)


@pytest.mark.parametrize("files", [{"tokenizer_config.json": {"chat_template_type": "deepseek_v32"}}, {}])
def test_a_model_that_has_code_in_the_place_of_a_template(tmp_path: Path, files: dict[str, Any]) -> None:
    """It is known by the name that mlx-lm's conversions give the code, or by its type."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other" if files else "deepseek_v32"}))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read_templates(tmp_path) == {"default": deepseek_v32_template.TEMPLATE}
    (tmp_path / "chat_template.jinja").write_text("own")
    assert read_templates(tmp_path) == {"default": "own"}
