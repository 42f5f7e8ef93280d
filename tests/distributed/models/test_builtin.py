"""The built-in model's folder, made from the package's GGUF."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer

from distributed.models.builtin import BuiltinMissing, find_gguf, is_made, make_builtin
from distributed.planning.checkpoint import read_config, read_tensors
from prompts.tokenizer import PromptTokenizer
from tests.fakes.checkpoints import reference_model
from tests.services.engine_in_process import EngineInProcess
from tests.services.stages import greedy_tokens, load_chain, reference_logits

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
NAME = "smollm2-135m"
END_IDS = (2, 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Make both forms once: packed and float32."""
    made = {}
    for is_packed in (False, True):
        made[is_packed] = tmp_path_factory.mktemp("models") / NAME
        make_builtin(NAME, made[is_packed], is_packed=is_packed)
    return made


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.slow
def test_two_stages_answer_the_question_about_paris(folders: dict[bool, Path]) -> None:
    """The converted model, cut in two, says what SmolLM2 says, with mlx-lm's logits.

    Unpacking loses nothing: the packed folder, dequantized on load, gives the same logits.
    """
    tokenizer = PromptTokenizer(folders[False])
    ids = tokenizer.encode_rendered(tokenizer.render(QUESTION).text)
    chain = load_chain(folders[False], (19, 11))
    logits = chain.prefill(ids)
    tokens = greedy_tokens(chain, ids, 9)
    end = next(i for i, token in enumerate(tokens) if token in END_IDS)
    assert tokenizer_of(folders[False]).decode(tokens[:end]) == "The capital of France is Paris."
    del chain
    unpacked = load_chain(folders[True], (30,), dequantize=True).prefill(ids)
    assert mx.allclose(unpacked, logits, rtol=0, atol=1e-3)
    assert mx.allclose(reference_logits(reference_model(folders[False]), ids), logits, rtol=0, atol=1e-3)


CAPITAL = "The capital of France is"
LIST = "a: 1\nb: 2\nc: 3\nd:"


@pytest.mark.slow
def test_a_raw_prompt_is_continued_with_its_first_space(folders: dict[bool, Path], tmp_path: Path) -> None:
    """In the log as in the result; a stop string of a space ends the answer there."""
    with EngineInProcess(tmp_path, folders[False], 2) as ring:
        spool, asked = ring.spool(), []
        for text, stop in ((CAPITAL, ()), (LIST, (" ",))):
            request = ring.request([1], max_tokens=5 if stop else 3, stop=stop)
            asked.append(replace(request, text=text, token_ids=None))
        plain, stopped = ring.ask(*asked)
        assert (plain.text, plain.finish_reason) == (" Paris.\n", "length")
        assert (stopped.text, stopped.finish_reason) == ("", "stop")
        for request, result in zip(asked, (plain, stopped), strict=True):
            records = spool.open_log(request.id).read_new()
            assert "".join(record.text for record in records) == result.text


def test_the_tokenizer_gives_back_any_text(folders: dict[bool, Path]) -> None:
    """Bytes, digits and special tokens survive; digits are split first."""
    tokenizer = tokenizer_of(folders[False])
    text = "Ünïcode 🙂 12345\n\tand <|im_start|>"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert ids[-1] == tokenizer.token_to_id("<|im_start|>") == 1
    assert len(tokenizer.encode("12345").ids) == 5


def test_the_folder_says_how_it_was_made(folders: dict[bool, Path]) -> None:
    """The config and the stamp name the family and the form; the end tokens are both of SmolLM2's."""
    packed, plain = folders[True], folders[False]
    assert read_config(plain)["model_type"] == "llama"
    assert "quantization" in read_config(packed)
    assert {info.dtype for info in read_tensors(plain).values()} == {"F32"}
    assert json.loads((plain / "generation_config.json").read_text()) == {"eos_token_id": [2, 0]}
    assert is_made(plain, NAME, is_packed=False)
    assert not is_made(plain, NAME, is_packed=True)


def test_making_it_again_changes_nothing(folders: dict[bool, Path]) -> None:
    """A second start takes no time."""
    before = (folders[True] / "model.safetensors").stat().st_mtime_ns
    reports: list[float] = []
    make_builtin(NAME, folders[True], is_packed=True, on_progress=lambda share, what: reports.append(share))
    assert (folders[True] / "model.safetensors").stat().st_mtime_ns == before
    assert reports == []


def test_what_an_interrupted_start_left_is_replaced(tmp_path: Path) -> None:
    """A half-made folder and its leftovers are cleared away, and progress ends at 1."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "config.json").write_text("{")
    leftover = tmp_path / f".{NAME}-left"
    leftover.mkdir()
    reports: list[float] = []
    make_builtin(NAME, folder, is_packed=True, on_progress=lambda share, what: reports.append(share))
    assert is_made(folder, NAME, is_packed=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", NAME]
    assert reports == sorted(reports)
    assert reports[-1] == 1.0


def test_an_unknown_builtin_is_refused() -> None:
    """The sentence names those that there are."""
    with pytest.raises(BuiltinMissing, match="builtin:smollm2-135m"):
        find_gguf("smollm3")
