# ruff: noqa: E501 - the lines of templates are as their families write them
"""The formats are found by the templates of their families, which write calls as the grammars demand them."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from config import Settings
from prompts import deepseek_v32_template
from prompts.answer_parts import Content, Reasoning, Tool
from prompts.tokenizer import PromptTokenizer
from prompts.tool_families import FORMATS
from tests.prompts.answers import read, read_calls
from tests.services.frontdoor_service import make_model_folder

# The parts of the families' templates that are about tools, shortened where they repeat.
HERMES = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with \
function signatures within <tools></tools> XML tags:\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": \
<args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == "user" or (message.role == "system" and not tools) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == "assistant" %}
{{- '<|im_start|>assistant\\n' + (message.content or '') }}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}{{- tool_call.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == "tool" %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
QWEN3_CODER = """{% if tools %}{{- tools | tojson }}
{{- '\\nReply in this format:\\n<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>\\n\
value_1\\n</parameter>\\n</function>\\n</tool_call>' }}{% endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for tool_call in message.tool_calls %}
{{- '\\n<tool_call>\\n<function=' + tool_call.function.name + '>\\n' }}
{%- for name, value in tool_call.function.arguments | items %}
{{- '<parameter=' + name + '>\\n' }}
{%- set value = value | tojson if value is mapping or (value is sequence and value is not string) else value | string %}
{{- value }}{{- '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}{% endfor %}"""
SEED_OSS = """{% if tools %}{{- tools | tojson }}
{{- '\\nFormat:\\n<seed:tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>value_1</parameter>\\n\
</function>\\n</seed:tool_call>\\n' }}{% endif %}
{%- for message in messages %}{{- '<seed:bos>' + message.role + '\\n' + (message.content or '') }}
{%- for tool_call in message.tool_calls %}{%- set tool_call = tool_call.function %}
{{- "\\n<seed:tool_call>\\n<function=" + tool_call.name + ">\\n" }}
{%- for arg_name, arg_value in tool_call.arguments | items %}
{{- "<parameter=" + arg_name + ">" }}{{- (arg_value if arg_value is string else arg_value | string) + "</parameter>\\n" }}
{%- endfor %}{{- "</function>\\n</seed:tool_call>" }}
{%- endfor %}{{- '<seed:eos>' }}{% endfor %}<seed:bos>assistant\n"""
NEMOTRON_V2 = """{% if tools %}<AVAILABLE_TOOLS>{{ tools | tojson }}</AVAILABLE_TOOLS>{% endif %}
{%- for message in messages %}{{- '<SPECIAL_11>' + message.role + '\\n' + (message.content or '') }}
{%- if message.tool_calls %}{{- '<TOOLCALL>[' }}{%- for call in message.tool_calls %}{%- set fn = call.function %}
{{- '{"name": "' + fn.name + '", "arguments": ' }}{{- fn.arguments | tojson }}{{- '}' + (', ' if not loop.last else '') }}
{%- endfor %}{{- ']</TOOLCALL>' }}{% endif %}{{- '\\n<SPECIAL_12>\\n' }}{% endfor %}
{{- '<SPECIAL_11>Assistant\\n<think>\\n' }}"""
LFM2 = """{% if tools %}{{- 'List of tools: ' }}{{ tools | tojson }}{% endif %}
{%- macro value(v) %}{{ "'" + v + "'" if v is string else v | tojson }}{% endmacro %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for tool_call in message.tool_calls %}{%- set tool_call = tool_call.function %}
{{- '<|tool_call_start|>[' + tool_call.name + '(' }}
{%- for k, v in tool_call.arguments.items() %}{{- k + '=' + value(v) }}{{- ', ' if not loop.last }}{% endfor %}
{{- ')]<|tool_call_end|>' }}{% endfor %}{{- '<|im_end|>\\n' }}{% endfor %}{{- '<|im_start|>assistant\\n' }}"""
COHERE = """{% if tools %}# Available Tools\n{{ tools | tojson }}{% endif %}
{%- for message in messages %}{% if message.tool_calls %}<|CHATBOT_TOKEN|><|START_THINKING|>{{ message.tool_plan }}<|END_THINKING|>
{{- '<|START_ACTION|>[' }}{% for tc in message.tool_calls %}
    {"tool_call_id": "{{ loop.index0 }}", "tool_name": {{ tc['function']['name'] | tojson }}, "parameters": \
{{ tc['function']['arguments'] | tojson }}}{{ ',' if not loop.last }}{% endfor %}
{{ ']<|END_ACTION|>' }}<|END_OF_TURN_TOKEN|>
{%- elif message.role == 'assistant' %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ message.content }}<|END_RESPONSE|>
{%- else %}<|{{ message.role }}|>{{ message.content }}{% endif %}{% endfor %}<|CHATBOT_TOKEN|>
{%- if not enable_thinking %}<|START_THINKING|><|END_THINKING|>{% endif %}"""
GEMMA4 = """{%- macro value(v) -%}
{%- if v is string %}{{ '<|"|>' + v + '<|"|>' }}
{%- elif v is sequence %}[{% for item in v %}{{ value(item) }}{{ ',' if not loop.last }}{% endfor %}]
{%- else %}{{ v }}{% endif %}{% endmacro %}
{%- if tools %}<|tool>{{ tools | tojson }}<tool|>{% endif %}
{%- for message in messages %}{{- '<|turn>' + message.role + '\\n' + (message.content or '') }}
{%- for tool_call in message['tool_calls'] %}{%- set function = tool_call['function'] %}
{{- '<|tool_call>call:' + function['name'] + '{' }}
{%- for k, v in function['arguments'] | dictsort %}{{- k }}:{{- value(v) }}{{- ',' if not loop.last }}{% endfor %}
{{- '}<tool_call|>' }}{% endfor %}{{- '<turn|>\\n' }}{% endfor %}{{- '<|turn>model\\n' }}"""
GLM = """{% if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}{{- '<|' + message.role + '|>\\n' + (message.content or '') }}
{%- for tc in message.tool_calls %}{%- set tc = tc.function %}
{{- '\\n<tool_call>' + tc.name + '\\n' }}
{%- for k, v in tc.arguments.items() %}{{- '<arg_key>' + k + '</arg_key>\\n<arg_value>' }}
{{- v | tojson if v is not string else v }}{{- '</arg_value>\\n' }}{% endfor %}
{{- '</tool_call>' }}{% endfor %}{% endfor %}<|assistant|>
{%- if enable_thinking is defined and not enable_thinking %}{{ '\\n<think></think>' }}{% endif %}"""
GLM47 = (
    GLM.replace("+ tc.name + '\\n'", "+ tc.name")
    .replace("'</arg_key>\\n<arg_value>'", "'</arg_key><arg_value>'")
    .replace("'</arg_value>\\n'", "'</arg_value>'")
)
MINIMAX = """{% if tools %}{{ tools | tojson }}{% endif %}{%- set begin = '<minimax:tool_call>' %}
{%- for message in messages %}{{- ']~b]' + message.role + '\\n' + (message.content or '') }}
{%- if message.tool_calls %}{{- '\\n' + begin + '\\n' }}
{%- for call in message.tool_calls %}{%- set call = call.function %}
{{- '<invoke name="' + call.name + '">\\n' }}
{%- for k, v in call.arguments.items() %}{{- '<parameter name="' + k + '">' }}
{{- v | tojson if v is not string else v }}{{- '</parameter>\\n' }}{% endfor %}
{{- '</invoke>\\n' }}{% endfor %}{{- '</minimax:tool_call>' }}{% endif %}{{- '[e~[\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- ']~b]ai\\n<think>\\n' }}{% endif %}"""
KIMI = """{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}
{%- for message in messages %}<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>
{%- if message.role == 'tool' %}## Return of {{ message.tool_call_id }}
{% endif %}{{ message.content or '' }}
{%- if message.tool_calls %}<|tool_calls_section_begin|>
{%- for tool_call in message.tool_calls %}
{%- set arguments = tool_call['function']['arguments'] %}
{%- set arguments = arguments if arguments is string else arguments | tojson -%}
<|tool_call_begin|>{{ tool_call['id'] }}<|tool_call_argument_begin|>{{ arguments }}<|tool_call_end|>
{%- endfor %}<|tool_calls_section_end|>{% endif %}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""
DEEPSEEK_V3 = """{{ bos_token }}{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] }}{% endif %}
{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' and message['tool_calls'] %}
{%- for tool in message['tool_calls'] %}
{%- set arguments = tool['function']['arguments'] | tojson %}
{%- if loop.first %}{{ '<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' \
+ tool['function']['name'] + '\\n' + '```json' + '\\n' + arguments + '\\n' + '```' + '<｜tool▁call▁end｜>' }}
{%- else %}{{ '\\n' + '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + \
'```json' + '\\n' + arguments + '\\n' + '```' + '<｜tool▁call▁end｜>' }}{% endif %}
{%- endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{% endif %}
{%- if message['role'] == 'assistant' and not message['tool_calls'] %}
{%- set content = message['content'].split('</think>')[-1] %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}
{%- if message['role'] == 'tool' %}{{ '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + \
'<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}{% endif %}
{%- endfor %}{{ '<｜Assistant｜><think>\\n' }}"""
# Coder-V2 and V2-Chat; Kimi-K2-Thinking's is Kimi-K2's with reasoning.
DEEPSEEK_V2 = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}
{{- 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}
{{- 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}
{{- message['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
KIMI_THINKING = KIMI.replace(
    "{{ message.content or '' }}", "<think>{{ message.reasoning_content }}</think>{{ message.content or '' }}"
)
DEEPSEEK_V31 = """{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}
{%- if message['tool_calls'] %}{{ '<｜Assistant｜></think>' }}{%- for tool in message['tool_calls'] %}
{%- set arguments = tool['function']['arguments'] | tojson %}
{%- if loop.first %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + \
arguments + '<｜tool▁call▁end｜>' }}
{%- else %}{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + arguments + \
'<｜tool▁call▁end｜>' }}{% endif %}{% endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- else %}{{ '<｜User｜>' + message['content'] }}{% endif %}{% endfor %}
{{- '<｜Assistant｜>' }}{{ '<think>' if thinking else '</think>' }}"""
MISTRAL_V3 = """{{ bos_token }}{% for message in messages %}
{%- if message.tool_calls %}{{ '[TOOL_CALLS] [' }}
{%- for tool_call in message.tool_calls %}{%- set out = tool_call.function | tojson %}{{ out[:-1] }}
{%- if not tool_call.id is defined or tool_call.id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
{{- ', "id": "' + tool_call.id + '"}' }}{{- ', ' if not loop.last else ']' + eos_token }}{% endfor %}
{%- elif message.role == 'tool' %}{{ '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + \
message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{% if loop.last and tools %}{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + message.content + '[/INST]' }}{% endif %}{% endfor %}"""
MISTRAL = """{% if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}{%- if message.tool_calls %}{%- for tool in message.tool_calls %}
{{- '[TOOL_CALLS]' + tool.function.name + '[ARGS]' + (tool.function.arguments | tojson) }}{% endfor %}{{ eos_token }}
{%- else %}{{ '[INST]' + message.content + '[/INST]' }}{% endif %}{% endfor %}"""
LLAMA3 = """{% for message in messages %}{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if loop.first and tools %}{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument \
name and its value}. Do not use variables.\\n\\n' }}{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}
{%- if message.tool_calls %}{%- set tool_call = message.tool_calls[0].function %}
{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
{%- else %}{{ message.content }}{% endif %}{{ '<|eot_id|>' }}{% endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"""
HARMONY = """{% if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}
{%- for message in messages %}{%- if message.tool_calls %}{%- set tool_call = message.tool_calls[0].function %}
{%- if message.thinking %}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}{% endif %}
{{- "<|start|>assistant to=functions." + tool_call.name + "<|channel|>commentary json<|message|>" }}
{{- tool_call.arguments | tojson }}{{- "<|call|>" }}
{%- elif message.role == 'assistant' %}{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
{%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}
{{- '<|start|>assistant' }}"""
TEMPLATES = {
    "hermes": HERMES,
    "qwen3_coder": QWEN3_CODER,
    "seed_oss": SEED_OSS,
    "glm": GLM,
    "glm47": GLM47,
    "minimax_m2": MINIMAX,
    "kimi_k2": KIMI,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": DEEPSEEK_V31,
    "deepseek_v32": deepseek_v32_template.TEMPLATE,
    "mistral_v3": MISTRAL_V3,
    "mistral": MISTRAL,
    "nemotron_v2": NEMOTRON_V2,
    "lfm2": LFM2,
    "cohere": COHERE,
    "gemma4": GEMMA4,
    "llama3": LLAMA3,
    "harmony": HARMONY,
}
PARIS = {"city": "Paris", "days": 3, "near": ["a b"]}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "near": {"type": "array"}},
}
TOOLS = (Tool("weather", "", SCHEMA),)
ASKED = {"role": "user", "content": "QUESTION"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_ab", "type": "function", "function": {"name": "weather", "arguments": PARIS}}
    ],
}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "call_ab"}


def load(folder: Path, template: str, **options: Any) -> PromptTokenizer:
    return PromptTokenizer(make_model_folder(folder, template=template), **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_that_the_template_writes_is_found_and_read(tmp_path: Path, name: str) -> None:
    """The family's own template, its call of an earlier turn, and the reader agree."""
    tokenizer = load(tmp_path, TEMPLATES[name])
    form = tokenizer.formats.tool_format
    assert form.name == name
    chat = tokenizer.render([ASKED, CALLED, RESULT, ASKED], tools=TOOLS).text
    begin = '{"name"' if form.is_bare else form.section[0] or (*form.other_openings, form.opening)[0]
    written = chat[chat.index(begin, chat.index("QUESTION")) :]
    end = {"mistral": "<|end|>", "mistral_v3": "<|end|>", "llama3": "<|eot_id|>", "harmony": "<|call|>"}
    if name in end:
        written = written.partition(end[name])[0]
    else:
        written = written.partition(form.section[1] or form.closing)[0] + (form.section[1] or form.closing)
    assert read_calls(form, TOOLS, written) == [("weather", PARIS)]


def test_tools_of_a_template_that_writes_calls_but_lists_none(tmp_path: Path) -> None:
    """DeepSeek V3: the system turn describes the tools, with a call in the model's own form."""
    text = load(tmp_path, DEEPSEEK_V3).render([ASKED, CALLED, RESULT], tools=TOOLS).text
    assert text.startswith("<|start|># Tools\n")
    assert (
        "write the call in exactly this form:\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        "<function-name>\n```json\n<args-json-object>\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜User｜>QUESTION"
    ) in text
    assert f"weather\n```json\n{json.dumps(PARIS)}\n```<｜tool▁call▁end｜>" in text


def test_deepseek_v2_has_no_form_of_its_own(tmp_path: Path) -> None:
    """Tools are described in the generic form, and calls and results become text; it does not reason."""
    tokenizer = load(tmp_path, DEEPSEEK_V2)
    assert tokenizer.formats.tool_format.name == "generic"
    assert tokenizer.formats.reasoning is None
    text = tokenizer.render([ASKED, CALLED, RESULT], tools=TOOLS).text
    assert "# Tools" in text
    assert "<tool_call>" in text
    assert "rain" in text
    assert text.endswith("Assistant:")


def test_ids_of_calls_are_those_that_the_model_knows(tmp_path: Path) -> None:
    """Kimi models name the function in an id; Mistral's templates refuse ids of another length than nine."""
    history: list[dict[str, Any]] = [ASKED, CALLED, RESULT, ASKED, CALLED, RESULT]
    kimi = load(tmp_path / "kimi", KIMI).render(history, tools=TOOLS).text
    assert "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>" in kimi
    assert "## Return of functions.weather:0\nrain" in kimi
    mistral = load(tmp_path / "mistral", MISTRAL_V3).render(history, tools=TOOLS).text
    assert '"id": "000000000"}]' in mistral
    assert '"call_id": "000000000"}' in mistral


@pytest.mark.parametrize(
    ("name", "variables", "is_thinking"),
    [
        ("minimax_m2", {}, True),
        ("kimi_thinking", {}, False),
        ("deepseek_v3", {}, True),
        ("deepseek_v31", {"thinking": True}, True),
        ("deepseek_v31", {}, False),
        ("deepseek_v32", {}, True),
        ("deepseek_v32", {"enable_thinking": False}, False),
        ("glm", {"enable_thinking": False}, False),
        ("harmony", {}, False),
        ("cohere", {"enable_thinking": True}, False),
    ],
)
def test_reasoning_is_found_by_the_template(
    tmp_path: Path, name: str, variables: dict[str, Any], is_thinking: bool
) -> None:
    """The prompt says whether the answer begins inside it."""
    tokenizer = load(tmp_path, {**TEMPLATES, "kimi_thinking": KIMI_THINKING}[name])
    assert tokenizer.formats.reasoning is not None
    assert tokenizer.render([ASKED], variables=variables).is_thinking == is_thinking


@pytest.mark.parametrize("tools", [(), TOOLS])
def test_an_answer_of_command_a_has_no_tags(tmp_path: Path, tools: tuple[Tool, ...]) -> None:
    """Neither with tools nor without."""
    reader = load(tmp_path, COHERE).formats.reader(tools, is_thinking=False)
    answer = "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Hi [there]<|END_RESPONSE|>"
    assert read(reader, answer) == [Reasoning("hm"), Content("Hi [there]")]


def test_the_setting_overrides_the_template(tmp_path: Path) -> None:
    """generic: the prompt describes the tools, and earlier calls have the same form."""
    text = load(tmp_path, KIMI, tool_format="generic").render([ASKED, CALLED, RESULT], tools=TOOLS).text
    assert "# Tools" in text
    assert "<tool_call>\n" in text
    assert "tool_declare" not in text
    assert load(tmp_path, HERMES, tool_format="llama3").formats.tool_format.name == "llama3"


def test_the_setting_names_every_format() -> None:
    """So that a wrong name is refused with the list."""
    names = get_args(Settings.model_fields["tool_format"].annotation)
    assert names == ("auto", *(form.name for form in FORMATS))
