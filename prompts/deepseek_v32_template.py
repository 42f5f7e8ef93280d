"""The chat template of DeepSeek-V3.2, which is published as Python code (encoding_dsv32.py) instead.

It writes what mlx-lm writes for `chat_template_type: deepseek_v32` (mlx_lm 0.32.2
chat_templates/deepseek_v32.py); a chat with tools and no system turn gets an empty one that lists them. Data
only.
"""

NAME = "deepseek_v32"

_TOOLS = """## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use \
JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, \
booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here \
is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
"""  # noqa: E501 - as the model was trained with it

TEMPLATE = (
    "{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{%- set last = namespace(user=-1) %}"
    "{%- for message in messages %}"
    "{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{%- macro list_tools() %}{{ '\n\n' }}"
    + _TOOLS
    + "{% for tool in tools %}{{ tool.function | tojson + '\n' }}{% endfor %}"
    "{{- '</functions>\n' }}{% endmacro %}"
    "{%- macro open(is_last) %}{{ '<think>' if enable_thinking and is_last else '</think>' }}{% endmacro %}"
    "{{- '<｜begin▁of▁sentence｜>' }}"
    "{%- if tools and messages and messages[0].role != 'system' %}{{ list_tools() }}{% endif %}"
    "{%- for message in messages %}"
    "{%- set at = loop.index0 %}"
    "{%- if message.role == 'system' %}"
    "{{- message.content or '' }}{% if tools %}{{ list_tools() }}{% endif %}"
    "{%- elif message.role == 'user' %}"
    "{{- '<｜User｜>' + message.content + '<｜Assistant｜>' + open(at == last.user) }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if loop.previtem is undefined or loop.previtem.role != 'tool' %}"
    "{{- '\n\n<function_results>' }}{% endif %}"
    "{{- '\n<result>' + message.content + '</result>' }}"
    "{%- if loop.nextitem is undefined or loop.nextitem.role != 'tool' %}"
    "{{- '\n</function_results>\n\n' + open(at >= last.user) }}{% endif %}"
    "{%- elif message.role == 'assistant' %}"
    "{%- if enable_thinking and at > last.user %}"
    "{{- (message.reasoning_content or '') + '</think>' }}{% endif %}"
    "{{- message.content or '' }}"
    "{%- if message.tool_calls %}{{ '\n\n<｜DSML｜function_calls>\n' }}"
    "{%- for call in message.tool_calls %}"
    "{{- '<｜DSML｜invoke name=\"' + call.function.name + '\">\n' }}"
    "{%- for key, value in call.function.arguments.items() %}"
    "{{- '<｜DSML｜parameter name=\"' + key + '\" string=\"' }}"
    "{{- ('true' if value is string else 'false') + '\">' }}"
    "{{- (value if value is string else value | tojson) + '</｜DSML｜parameter>\n' }}"
    "{%- endfor %}{{ '</｜DSML｜invoke>\n' }}{% endfor %}{{ '</｜DSML｜function_calls>' }}{% endif %}"
    "{{- '<｜end▁of▁sentence｜>' }}"
    "{%- else %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "{%- endfor %}"
)
