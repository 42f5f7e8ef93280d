"""Token ids equal those of AutoTokenizer, which replaces parts of the tokenizers of some families."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from prompts.tokenizer import PromptTokenizer
from tests.fakes.trained_tokenizers import (
    DEEPSEEK2,
    DEEPSEEK3,
    DIGITS,
    LLAMA2,
    LLAMA3,
    PLAIN_SPACES,
    QWEN,
    cut,
    train,
    train_pieces,
    with_decoder,
)

pytestmark = pytest.mark.slow

TEXTS = (
    "hello world",
    "  the water  of\nthe sea ",
    "the sea</s>cold <|im_end|> north",
    " a",
    "Größe 北京 🎉 12 345 naïve café",
    "don't",
    "\tx\n\n\ny",
    "cafe\u0301",
    "",
)
STRIPPED = decoders.Sequence([*PLAIN_SPACES, decoders.Strip(" ", 1, 0)])


def byte_level(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    return with_decoder(train(pre_tokenizer, normalizer), decoders.ByteLevel())


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """Add the post-processor that writes the BOS token before a text."""
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer


def marked_spaces(scheme: str) -> Tokenizer:
    """Make a BPE tokenizer with ▁ for a space and with byte tokens, as sentencepiece models are converted."""
    pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return with_bos(train_pieces(STRIPPED, pre_tokenizer))


def gemma() -> Tokenizer:
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    return with_bos(train_pieces(decoders.Sequence(PLAIN_SPACES), split, normalizers.Replace(" ", "▁")))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(["the water of the sea is cold in the north", "the sea"] * 30, trainer)
    return with_bos(tokenizer)


LLAMA_FAST, PLAIN_FAST = "LlamaTokenizerFast", "PreTrainedTokenizerFast"
# name -> the tokenizer, and model_type and tokenizer_class as such folders name them.
FAMILIES: dict[str, tuple[Tokenizer, str, str | None]] = {
    "qwen2": (byte_level(cut(QWEN), normalizers.NFC()), "qwen2", "Qwen2Tokenizer"),
    "qwen3": (byte_level(cut(QWEN), normalizers.NFC()), "qwen3", "Qwen2Tokenizer"),
    "r1 distill qwen": (byte_level(cut(QWEN), normalizers.NFC()), "qwen2", LLAMA_FAST),
    "llama 3": (byte_level(cut(LLAMA3)), "llama", PLAIN_FAST),
    "r1 distill llama": (byte_level(cut(LLAMA3)), "llama", LLAMA_FAST),
    "no class": (byte_level(cut(LLAMA3)), "llama", None),
    "deepseek v2": (byte_level(cut(*DEEPSEEK2, has_digits=True)), "deepseek_v2", LLAMA_FAST),
    "deepseek v3": (byte_level(cut(*DEEPSEEK3)), "deepseek_v3", LLAMA_FAST),
    "glm 4.5": (byte_level(cut(LLAMA3)), "glm4_moe", PLAIN_FAST),
    "gpt-oss": (byte_level(cut(LLAMA3)), "gpt_oss", PLAIN_FAST),
    "minimax m2": (byte_level(cut(LLAMA3)), "minimax_m2", "GPT2Tokenizer"),
    "devstral": (byte_level(cut(LLAMA3)), "mistral3", PLAIN_FAST),
    "smollm3": (byte_level(cut(LLAMA3)), "smollm3", PLAIN_FAST),
    "starcoder2": (byte_level(DIGITS), "starcoder2", "GPT2Tokenizer"),
    "granite": (byte_level(DIGITS), "granite", "GPT2Tokenizer"),
    "mistral": (marked_spaces("first"), "mistral", "LlamaTokenizer"),
    "mistral, every piece": (marked_spaces("always"), "mistral", "LlamaTokenizer"),
    "mistral, first files": (with_bos(train_pieces(STRIPPED, None, LLAMA2)), "mistral", "LlamaTokenizer"),
    "phi 3": (marked_spaces("first"), "phi3", "LlamaTokenizer"),
    "gemma 3": (gemma(), "gemma3_text", "GemmaTokenizer"),
    "unigram": (unigram(), "llama", PLAIN_FAST),
}


def make_folder(folder: Path, name: str, **more: Any) -> Path:
    tokenizer, model_type, class_name = FAMILIES[name]
    tokenizer.save(str(folder / "tokenizer.json"))
    has_marks = tokenizer.token_to_id("<s>") is not None
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if has_marks else {}
    config = {**special, "tokenizer_class": class_name, **more}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_token_ids_equal_those_of_auto_tokenizer(tmp_path: Path, name: str) -> None:
    """Of chats and of raw text."""
    from transformers import AutoTokenizer

    folder = make_folder(tmp_path, name)
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ours = PromptTokenizer(folder)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode_rendered(text) == ids
        assert ours.encode_raw(text) == theirs.encode(text)


def test_where_the_first_files_of_llama_differ(tmp_path: Path) -> None:
    """transformers 5 replaces their normalizer: no space after a special token any more.

    Meta's own code encodes each turn alone, with that space: tokenizer.json counts as it is.
    """
    from transformers import AutoTokenizer

    folder = make_folder(tmp_path, "mistral, first files", legacy=False)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    text = "the sea</s>cold"
    assert PromptTokenizer(folder)._tokenizer.encode(text).tokens[-4] == "▁"
    assert "▁" not in theirs.tokenize(text)


@pytest.mark.parametrize(("name", "file"), [("qwen3", "vocab.json"), ("devstral", "tekken.json")])
def test_what_a_refusal_advises_makes_a_folder_that_is_read_alike(
    tmp_path: Path, name: str, file: str
) -> None:
    """AutoTokenizer reads other files, and writes a tokenizer.json with the same ids."""
    from transformers import AutoTokenizer

    folder = make_folder(tmp_path, name, eos_token="<|im_end|>")
    (folder / "tokenizer.json").unlink()
    if file == "vocab.json":
        FAMILIES[name][0].model.save(str(folder))
    else:
        write_tekken(folder / file)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(folder)
    theirs, ours = AutoTokenizer.from_pretrained(folder), PromptTokenizer(folder)
    for text in TEXTS:
        assert ours.encode_rendered(text) == theirs.encode(text, add_special_tokens=False)


def write_tekken(path: Path) -> None:
    """Write a vocabulary in Mistral's own form, of single bytes."""
    tokens = [
        {"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode(), "token_str": None}
        for byte in range(256)
    ]
    special = [
        {"rank": rank, "token_str": text, "is_control": True}
        for rank, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    config = {"pattern": LLAMA3, "num_vocab_tokens": 259, "default_vocab_size": 259}
    config |= {"default_num_special_tokens": 3, "version": "v11"}
    path.write_text(json.dumps({"config": config, "vocab": tokens, "special_tokens": special}))
