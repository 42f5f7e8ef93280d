"""The scripted model: its rules, its answers in any ring and after a crash, and under a mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer

from config import Settings, SettingsError, load_settings
from config.scripted import NO_RULE, Rule, Turn, find_rule, read_script
from distributed.backends.scripted import Prompter
from distributed.models.scripted import END_ID, make_scripted
from distributed.prepare import prepare
from prompts.tokenizer import PromptTokenizer
from spool import Request
from tests.services.engine_in_process import EngineInProcess
from tests.services.frontdoor_service import serving
from tests.services.ring_service import RingService

READ = '<tool_call>\n{"name": "read", "arguments": {"path": "hello.py"}}\n</tool_call>'
EDIT = (
    '<tool_call>\n{"name": "edit", "arguments": {"old": "print()", "new": "print(\\"Grüß dich 🙂\\")"}}\n'
    "</tool_call>"
)
LONG = " ".join(f"word {number}," for number in range(60))
AGENT: list[dict[str, Any]] = [
    {"anywhere": "make a title", "say": "A greeting"},
    {"when": "print()", "after": 1, "say": EDIT},
    {"when": "done", "after": 2, "say": "hello.py greets now."},
    {"regex": r"(?i)add a \w+ to hello\.py", "after": 0, "say": READ},
    {"when": "long", "say": LONG},
]
TASK = {"role": "user", "content": "Please ADD A greeting to hello.py"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the agent's script."""
    folder = tmp_path_factory.mktemp("scripted")
    make_scripted(write_script(folder, AGENT), folder / "model")
    return folder / "model"


def write_script(folder: Path, rules: Any) -> Path:
    path = folder / "agent.json"
    path.write_text(rules if isinstance(rules, str) else json.dumps(rules))
    return path


def history(*turns: str) -> list[dict[str, str]]:
    """The task, then turns of assistant and tool in turn."""
    roles = ("assistant", "tool")
    return [TASK, *({"role": roles[i % 2], "content": text} for i, text in enumerate(turns))]


def first_tokens(model: Path, text: str, num_tokens: int) -> str:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    found: str = tokenizer.decode(tokenizer.encode(text).ids[:num_tokens])
    return found


def chat(ring: EngineInProcess, messages: list[dict[str, str]], **params: Any) -> Request:
    """Make a request as the front door would for a chat."""
    rendered = PromptTokenizer(ring.model).render(messages)
    request = ring.request([1], **{"max_tokens": 400, **params})
    return replace(request, text=rendered.text, literals=rendered.literals, token_ids=None)


def test_the_first_rule_whose_conditions_all_hold_gives_the_answer() -> None:
    """Conditions look at the newest turns, at any turn, or count the answers so far."""
    turns = [Turn("system", "tools"), Turn("user", "one"), Turn("assistant", "two"), Turn("tool", "three")]
    rules = (
        Rule("a", when="one"),  # before the last answer
        Rule("b", regex="^two"),
        Rule("c", when="three", anywhere="nothing"),
        Rule("d", when="three", after=2),
        Rule("e", when="three", after=1, anywhere="tools", regex="thr"),
        Rule("f"),
    )
    assert find_rule(rules, turns).say == "e"
    assert find_rule(rules, turns[:2]).say == "a"
    assert find_rule(rules, turns[:1]).say == "f"
    assert find_rule(rules[:3], turns[:1]) is NO_RULE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"say": "a"},\n {]', "agent.json is not JSON: .* line 2 column 3"),
        ("{}", "agent.json is not a list of rules"),
        ('[{"say": "a"}, {"when": "b"}]', "agent.json, rule 2: .* the key say"),
        ('[{"say": "a", "then": "b"}]', "rule 1 has the unknown key 'then'; allowed: say, when"),
        ('[{"say": "a", "after": -1}]', "rule 1: after must be a whole number from 0, not -1"),
        ('[{"say": "a", "regex": "("}]', "rule 1: regex is no regular expression"),
    ],
)
def test_a_wrong_script_is_refused_with_file_and_place(tmp_path: Path, text: str, reason: str) -> None:
    """The same for a file that does not exist."""
    with pytest.raises(ValueError, match=reason):
        read_script(write_script(tmp_path, text))
    with pytest.raises(ValueError, match=r"none\.json cannot be read: No such file"):
        read_script(tmp_path / "none.json")


def test_the_start_makes_the_folder_and_takes_an_edited_script(tmp_path: Path) -> None:
    """A relative path starts from the folder of .env; a broken script is an error of the settings."""
    values = {"MODEL_REPO": "scripted:agent.json", "STATE_DIR": str(tmp_path / "var")}
    for rules in (AGENT, AGENT[:1]):
        write_script(tmp_path, rules)
        settings: Settings = load_settings(values, root=tmp_path, environ={})
        prepare(settings)
        assert len(read_script(settings.model_dir / "script.json")) == len(rules)
    assert [path.name for path in settings.model_dir.parent.iterdir()] == [settings.model_dir.name]
    assert settings.model_name == "scripted-agent"
    write_script(tmp_path, "[")
    with pytest.raises(SettingsError, match=r"MODEL_REPO.*agent\.json is not JSON.*line 1 column 2"):
        load_settings(values, root=tmp_path, environ={})


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_an_agent_gets_its_calls_and_its_last_word(model: Path, tmp_path: Path, num_ranks: int) -> None:
    """Turn by turn, in rings of any size, byte for byte; a prompt without a rule says so."""
    with EngineInProcess(tmp_path, model, num_ranks, max_sequence_length="auto") as ring:
        chats = [
            history(),
            history(READ, "print()"),
            history(READ, "print()", EDIT, "done"),
            [{"role": "system", "content": "You make a title."}, TASK],
            [{"role": "user", "content": "hello"}],
        ]
        results = ring.ask(*(chat(ring, messages) for messages in chats))
        assert [result.text for result in results] == [
            READ,
            EDIT,
            "hello.py greets now.",
            "A greeting",
            NO_RULE.say,
        ]
        assert {result.finish_reason for result in results} == {"stop"}
        assert ring.status()["context"]["max_tokens"] >= 32_768
        raw = replace(ring.request([1], max_tokens=5), text="a long", token_ids=None)
        assert ring.ask(raw)[0].text == first_tokens(model, LONG, 5)


@pytest.mark.slow
def test_rows_prefixes_drafts_and_a_kill_change_no_answer(model: Path, tmp_path: Path) -> None:
    """Eight rows with a long common beginning, chunked; a kill in the middle of their answers."""
    common = "some words " * 300
    with EngineInProcess(tmp_path, model, 2, max_sequence_length=8192, prefill_chunk_tokens=64) as ring:
        rows = [chat(ring, [{"role": "user", "content": f"{common}long {n}"}]) for n in range(8)]
        ring.submit(*rows)
        ring.run_until(lambda: all(len(ring.records(row)) > 20 for row in rows))
        assert not any(ring.result(row) for row in rows)
        ring.kill()
        ring.start()
        assert [result.text for result in ring.results(*rows)] == [LONG] * 8
        again = chat(ring, [{"role": "user", "content": f"{common}long 8"}])
        (result,) = ring.ask(again)
        assert result.text == LONG
        assert result.usage.cached_tokens > 300


def allowed_best(prompter: Prompter, ids: list[int], allowed: set[int]) -> int:
    """The token that greedy sampling draws under a mask."""
    logits, _ = prompter.logits(np.array(ids))
    return max(allowed, key=lambda token: logits.get(token, -token / 50_000))


def test_a_mask_gets_a_piece_of_the_script_or_what_ends_it(model: Path) -> None:
    """A piece first; then the end, or the next letter that closes JSON; any token at last."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompter = Prompter(tokenizer, [Rule('{"city": "Zürich"}')])
    prompt = tokenizer.encode("<|im_start|>user\nwhere?<|im_end|>\n<|im_start|>assistant\n").ids
    whole = tokenizer.encode('{"city": "Zürich"}').ids
    token = {text: tokenizer.encode(text).ids[0] for text in ('{"', "{", '"', "}", "c", "x")}
    everything = set(range(tokenizer.get_vocab_size()))
    answer: list[int] = []
    while not answer or answer[-1] != END_ID:
        answer.append(allowed_best(prompter, [*prompt, *answer], everything))
    assert answer == [*whole, END_ID]
    assert allowed_best(prompter, prompt, everything - {whole[0]}) == token["{"]
    split = [*prompt, token["{"]]
    assert tokenizer.decode([allowed_best(prompter, split, everything)]).startswith('"')
    assert allowed_best(prompter, [*prompt, token["x"]], everything) == END_ID
    assert allowed_best(prompter, [*prompt, token["x"]], everything - {END_ID}) == token["}"]
    in_string = [*prompt, token["{"], token['"'], token["x"]]
    assert allowed_best(prompter, in_string, everything - {END_ID}) == token['"']
    assert allowed_best(prompter, in_string, {token["c"]}) == token["c"]


@pytest.mark.slow
def test_a_stream_over_http_is_the_script(tmp_path: Path) -> None:
    """Front door, spool and a ring of two processes; tokens arrive as the pause lets them."""
    script = write_script(tmp_path, [{"when": "hello", "say": "Grüß dich 🙂, world!", "pause_us": 1000}])
    values = {"MODEL_REPO": f"scripted:{script}", "STATE_DIR": str(tmp_path / "state")}
    settings = load_settings({**values, "SPOOL_DURABILITY": "process"}, root=tmp_path, environ={})
    prepare(settings)
    with RingService(tmp_path / "state", settings.model_dir, 2, **values), serving(settings) as url:
        body = {"model": "scripted-agent", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == "Grüß dich 🙂, world!"
    assert len(chunks) > 4
