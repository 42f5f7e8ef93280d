"""The tokenizer and chat template: equal to transformers', safe, and hashed."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from distributed.engine.text_stream import TextStream
from prompts.tokenizer import MessagesRefused, PromptTokenizer, TokenizerUnusable, tokenizer_hash
from tests.fakes.trained_tokenizers import BY_NEIGHBOUR, BY_PLACE, SAMPLE, TOKENIZERS
from tests.services.frontdoor_service import make_model_folder

CHAT = [
    {"role": "system", "content": "be\n  brief  "},
    {"role": "user", "content": "<b>Grüße</b> & 🎉"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "{{ 7 * 7 }} <|end|>"},
]
TEMPLATES = [
    "{% for m in messages %}{{ m.role }}={{ m.content | trim }};{% endfor %}",
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'system' %}\n{% continue %}\n  {% endif %}"
    "{{ m | tojson }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}go{% endif %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% generation %}{{ ns.n }}{{ m.content }}{% endgeneration %}{% endfor %}{{ tools }}{{ nothing }}",
]


def transformers_ids(folder: Path, chat: list[dict[str, str]]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
def test_token_ids_equal_those_of_transformers(tmp_path: Path, template: str) -> None:
    """White space, JSON, loop controls, namespaces and the generation tag render alike."""
    folder = make_model_folder(tmp_path, template=template)
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.encode_rendered(tokenizer.render(CHAT).text) == transformers_ids(folder, CHAT)


KINDS = TOKENIZERS | BY_PLACE | BY_NEIGHBOUR


@pytest.mark.parametrize("name", KINDS)
def test_a_rendered_chat_has_the_ids_of_its_whole_text(tmp_path: Path, name: str) -> None:
    """For every family of tokenizers that is served, whatever is left of its training's padding."""
    trained = Tokenizer.from_str(KINDS[name].to_str())
    text = f"{SAMPLE} north NORTH<|im_start|>  Größe\n\n345 <tool>x"
    ids = trained.encode(text, add_special_tokens=False).ids
    trained.enable_truncation(8)
    trained.enable_padding(length=512)
    folder = make_model_folder(tmp_path)
    (folder / "tokenizer.json").write_text(trained.to_str(), "utf-8")
    assert PromptTokenizer(folder).encode_rendered(text) == ids


def test_a_long_text_does_not_block_other_threads(tmp_path: Path) -> None:
    """The interpreter's lock is free meanwhile: other threads go on, as the front door's event loop must."""
    folder = make_model_folder(tmp_path)
    (folder / "tokenizer.json").write_text(TOKENIZERS["digits"].to_str(), "utf-8")
    tokenizer = PromptTokenizer(folder)
    text = "the water of the sea is cold, 12 345 degrees " * 4_000
    is_over = threading.Event()
    begun_s = time.perf_counter()

    def encode() -> None:
        tokenizer.encode_raw(text)
        is_over.set()

    thread = threading.Thread(target=encode)
    thread.start()
    longest_s, last_s = 0.0, begun_s
    while not is_over.wait(0.001):
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    thread.join()
    assert longest_s < (time.perf_counter() - begun_s) / 2


def test_a_template_in_the_configuration_is_found(tmp_path: Path) -> None:
    """Older model folders keep it in tokenizer_config.json, alone or in a list of named ones."""
    make_model_folder(tmp_path, template=None)
    for written in ("plain", [{"name": "tools", "template": "no"}, {"name": "default", "template": "plain"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": written}))
        assert PromptTokenizer(tmp_path).render(CHAT).text == "plain"


def test_raw_text_begins_with_the_bos_token_where_the_model_wants_it(tmp_path: Path) -> None:
    """add_bos_token counts for plain text only, and never twice."""
    make_model_folder(tmp_path)
    without = PromptTokenizer(tmp_path).encode_raw("hi")
    config = {"add_bos_token": True, "bos_token": {"content": "<|start|>", "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = PromptTokenizer(tmp_path)
    bos_id = tokenizer.encode_rendered("<|start|>")[0]
    assert tokenizer.encode_raw("hi") == [bos_id, *without]
    assert tokenizer.encode_raw("<|start|>hi") == [bos_id, *without]
    assert tokenizer.encode_rendered("hi") == without


def make_folder_that_adds(folder: Path, single: str, **config: Any) -> Path:
    """Write a folder whose post-processor puts special tokens around a text."""
    make_model_folder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [(text, tokenizer.token_to_id(text)) for text in ("<|start|>", "<|end|>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|start|>", "eos_token": "<|end|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


START, END = 256, 257


@pytest.mark.parametrize("add_bos", [{}, {"add_bos_token": True, "add_eos_token": True}])
@pytest.mark.parametrize(
    ("single", "text", "written", "opening"),
    [
        ("<|start|> $A", "hi", [], [START]),
        ("<|start|> $A", "<|start|>hi", [START], [START]),
        ("<|start|> $A", "<|start|><|start|>hi", [START, START], [START, START]),
        ("<|start|> $A <|end|>", "hi", [], [START]),
        ("<|start|> $A <|end|>", "<|start|>hi", [START], [START]),
        ("<|start|> <|end|> $A", "hi", [], [START, END]),
        ("<|start|> <|end|> $A", "<|start|><|end|>hi", [START, END], [START, END]),
        ("<|start|> <|end|> $A", "<|end|>hi", [END], [START, END]),
    ],
)
def test_special_tokens_around_a_raw_prompt_are_never_doubled(
    tmp_path: Path, single: str, text: str, written: list[int], opening: list[int], add_bos: dict[str, bool]
) -> None:
    """Those that open a text stand once, written or not; none that ends a text stands behind a prompt."""
    tokenizer = PromptTokenizer(make_folder_that_adds(tmp_path, single, **add_bos))
    ids = tokenizer.encode_rendered(text)
    assert ids[: len(written)] == written
    assert tokenizer.encode_raw(text) == opening + ids[len(written) :]


def test_a_template_that_writes_the_bos_token_writes_it_once(tmp_path: Path) -> None:
    """A chat has the special tokens of its template, whatever the tokenizer puts around a text."""
    folder = make_folder_that_adds(tmp_path, "<|start|> $A <|end|>", add_bos_token=True)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}go")
    tokenizer = PromptTokenizer(folder)
    ids = tokenizer.encode_rendered(tokenizer.render([{"role": "user", "content": "hi"}]).text)
    assert (ids[0], ids.count(START), ids.count(END)) == (START, 1, 1)


@pytest.mark.parametrize(
    ("opening", "turn", "text"),
    [("Assistant:", "Assistant: ", "Paris"), ("<|start|>", "<|start|>", " Paris"), ("A: ", "A: ", " Paris")],
)
def test_an_answer_that_is_sent_back_has_the_ids_it_had(
    tmp_path: Path, opening: str, turn: str, text: str
) -> None:
    """Its first space is the template's where the template writes one; so its KV is found again."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n{% else %}"
        + f"{turn}{{{{ m.content }}}}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}{opening}"
    )
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template=template))
    chat = [{"role": "user", "content": "Where?"}]
    asked = tokenizer.encode_rendered(tokenizer.render(chat).text)
    answer = tokenizer.encode_rendered(" Paris")
    stream = TextStream(tokenizer.detokenizer, ())
    assert "".join(map(stream.add, answer)) + stream.finish() == text
    back = tokenizer.render([*chat, {"role": "assistant", "content": text}, *chat])
    assert tokenizer.encode_rendered(back.text)[: len(asked) + len(answer)] == asked + answer


def test_a_template_may_refuse(tmp_path: Path) -> None:
    """What the template raises, and a model without a template, are refusals with a sentence."""
    refusing = make_model_folder(tmp_path / "a", template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(MessagesRefused, match="roles must alternate"):
        PromptTokenizer(refusing).render(CHAT)
    plain = make_model_folder(tmp_path / "b", template=None)
    assert not PromptTokenizer(plain).has_chat_template
    with pytest.raises(MessagesRefused, match="no chat template"):
        PromptTokenizer(plain).render(CHAT)


@pytest.mark.parametrize(
    "fault", ["1 // 0", "2.0 ** 10000", "'{x}'.format()", "'a' + 1", "'%d' % 'a'", "1.5 | round('x')"]
)
def test_a_template_that_fails_stops_no_start(tmp_path: Path, fault: str) -> None:
    """Every exception of a template is a refusal of the messages."""
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template="{{ " + fault + " }}"))
    with pytest.raises(MessagesRefused):
        tokenizer.render(CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append({'role': 'user'}) }}",
        "{{ raise_exception.__globals__.os }}",
        "{% set ns = namespace(__call__=1) %}",
        "{% set ns = namespace({'__class__': 1}) %}",
        "{% set ns = namespace() %}{% set ns.__html__ = 1 %}",
    ],
)
def test_a_template_cannot_reach_python(tmp_path: Path, template: str) -> None:
    """Templates come from the Hub: they run in the sandbox."""
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template=template))
    with pytest.raises(MessagesRefused):
        tokenizer.render(CHAT)


def test_the_hash_covers_tokenizer_and_template(tmp_path: Path) -> None:
    """It is the same without loading, and another one when either changes."""
    first = make_model_folder(tmp_path / "a")
    second = make_model_folder(tmp_path / "b", template="other")
    assert PromptTokenizer(first).hash == tokenizer_hash(first)
    assert tokenizer_hash(first) != tokenizer_hash(second)
    (second / "chat_template.jinja").write_text((first / "chat_template.jinja").read_text())
    assert tokenizer_hash(first) == tokenizer_hash(second)
    with (second / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert tokenizer_hash(first) != tokenizer_hash(second)


def test_a_folder_without_a_usable_tokenizer_is_named(tmp_path: Path) -> None:
    """Missing or damaged files give one sentence for the user."""
    with pytest.raises(TokenizerUnusable, match="tokenizer"):
        PromptTokenizer(tmp_path)
    make_model_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(TokenizerUnusable, match="cannot be read"):
        PromptTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerUnusable, match="cannot be read"):
        PromptTokenizer(tmp_path)
