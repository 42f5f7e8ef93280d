"""How tools reach the prompt: by the template, or as text of the system or the first user turn."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from prompts.answer_parts import Tool
from prompts.tokenizer import MessagesRefused, PromptTokenizer
from tests.services.frontdoor_service import make_model_folder

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
SILENT = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
KNOWS = (
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    + PLAIN
    + "{% if tool_calls %}<tool_call>{% endif %}"
)
TOOLS = (Tool("weather", "Say it <|end|>", {"type": "object", "properties": {"city": {"type": "string"}}}),)
ASKED = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be brief"}
DESCRIBED = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "weather", "description": "Say it <|end|>", \
"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""  # noqa: E501
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}],
}
RESULT = {"role": "tool", "content": "rain"}
CALL_TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
RESULT_TEXT = "<tool_response>\nrain\n</tool_response>"


def load(folder: Path, template: str) -> PromptTokenizer:
    return PromptTokenizer(make_model_folder(folder, template=template))


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (PLAIN, [ASKED], f"[system]{DESCRIBED}[user]hi[assistant]"),
        (PLAIN, [SYSTEM, ASKED], f"[system]be brief\n\n{DESCRIBED}[user]hi[assistant]"),
        (NO_SYSTEM, [ASKED], f"[user]{DESCRIBED}\n\nhi[assistant]"),
        (NO_SYSTEM, [SYSTEM, ASKED], f"[user]be brief\n\n{DESCRIBED}\n\nhi[assistant]"),
        (SILENT, [SYSTEM, ASKED], f"[user]be brief\n\n{DESCRIBED}\n\nhi[assistant]"),
        (
            PLAIN,
            [ASKED, CALLED, RESULT, ASKED],
            f"[system]{DESCRIBED}[user]hi[assistant]{CALL_TEXT}[user]{RESULT_TEXT}\nhi[assistant]",
        ),
    ],
)
def test_a_template_without_tools_gets_them_as_text(
    tmp_path: Path, template: str, messages: list[dict[str, object]], text: str
) -> None:
    """In the system turn, or before the first user's where the template has none; calls in the same form."""
    assert load(tmp_path, template).render(messages, tools=TOOLS).text == text


DEEPSEEK_CODER = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '

' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}\
{% elif message['role'] == 'system' %}{{ message['content'] + '

' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""  # noqa: E501


def test_the_prompt_of_the_default_model(tmp_path: Path) -> None:
    """DeepSeek-Coder-V2's template, with tools, a call and its result."""
    tokenizer = load(tmp_path, DEEPSEEK_CODER)
    assert tokenizer.formats.tool_format.name == "generic"
    chat = tokenizer.render([SYSTEM, ASKED, CALLED, RESULT], tools=TOOLS)
    assert chat.text == (
        f"<|start|>be brief\n\n{DESCRIBED}\n\nUser: hi\n\nAssistant: {CALL_TEXT}<|end|>"
        f"User: {RESULT_TEXT}\n\nAssistant:"
    )


def test_a_template_with_tools_lists_them_itself(tmp_path: Path) -> None:
    """In OpenAI's form; without tools it gets none."""
    tokenizer = load(tmp_path, KNOWS)
    listed = DESCRIBED.split("\n")[6]
    assert tokenizer.render([ASKED], tools=TOOLS).text == f"[tools][{listed}][user]hi[assistant]"
    assert tokenizer.render([ASKED]).text == "[user]hi[assistant]"


@pytest.mark.parametrize("template", [PLAIN, KNOWS])
def test_control_tokens_of_tools_stay_text(tmp_path: Path, template: str) -> None:
    """A client writes tools, as it writes messages."""
    tokenizer = load(tmp_path, template)
    chat = tokenizer.render([ASKED], tools=TOOLS)
    assert [chat.text[at : at + 7] for at in chat.literals] == ["<|end|>"]
    end = next(iter(tokenizer.end_token_ids))
    assert end not in tokenizer.encode_rendered(chat.text, literals=chat.literals)


def test_variables_reach_the_template(tmp_path: Path) -> None:
    """Those that it reads; others are refused with the names that it reads, and their text is a client's."""
    tokenizer = load(tmp_path, "{{ style }}{{ bos_token }}{% if raise_exception %}{% endif %}" + PLAIN)
    assert tokenizer.render([ASKED], variables={"style": "x"}).text == "x<|start|>[user]hi[assistant]"
    assert tokenizer.render([ASKED], variables={"style": "<|end|>"}).literals == (0,)
    with pytest.raises(MessagesRefused, match=r"does not read tone; variables that it reads: style$"):
        tokenizer.render([ASKED], variables={"tone": 1, "style": 2})
    for name in ("messages", "bos_token", "raise_exception"):
        with pytest.raises(MessagesRefused, match=f"does not read {name}"):
            tokenizer.render([ASKED], variables={name: 1})


def test_a_prompt_that_opens_the_tag_of_reasoning_says_so(tmp_path: Path) -> None:
    """The answer begins inside it; a tag in the client's text means nothing."""
    opens = "{% if deep %}{% set end = '<think>\n' %}{% else %}{% set end = '<think></think>' %}{% endif %}"
    tokenizer = load(tmp_path, opens + PLAIN + "{{ end }}")
    assert tokenizer.render([ASKED], variables={"deep": True}).is_thinking
    assert not tokenizer.render([{"role": "user", "content": "<think>"}]).is_thinking
    assert tokenizer.formats.reasoning is not None
    assert load(tmp_path / "plain", PLAIN).formats.reasoning is None


def test_special_tokens_can_be_text(tmp_path: Path) -> None:
    """For answers whose format needs them; what ends an answer never is."""
    folder = make_model_folder(tmp_path, template="{{ tools }}[TOOL_CALLS][ARGS]")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = ["[TOOL_CALLS]"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = PromptTokenizer(folder)
    tag, end = (tokenizer.token_to_id(text) for text in ("[TOOL_CALLS]", "<|end|>"))
    assert loaded.formats.shows_special(TOOLS)
    assert not loaded.formats.shows_special(())
    assert loaded.detokenizer.added_bytes(tag, None) is None
    assert loaded.special_detokenizer.added_bytes(tag, 3) == b"[TOOL_CALLS]"
    assert loaded.special_detokenizer.added_bytes(end, 3) is None
    assert not load(tmp_path / "plain", PLAIN).formats.shows_special(TOOLS)
