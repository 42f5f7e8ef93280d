"""Small BPE tokenizers with real merges, cut as the families that are served cut their texts."""

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ("<|bos|>", "<|im_start|>", "<|im_end|>")
SAMPLE = "<|bos|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\n"
CORPUS = ["the water of the sea is cold in the north, 12 345 degrees", "Größe, naïve café 北京 🎉", SAMPLE]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


def train(pre_tokenizer: Any = BYTE_LEVEL, normalizer: Any = None, **flags: bool) -> Tokenizer:
    """Train a BPE tokenizer with real merges; `flags` are those of its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    special = [AddedToken(text, special=True, normalized=False, **flags) for text in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("north", normalized=True)])
    return tokenizer


def train_pieces(decoder: Any, pre_tokenizer: Any = None, normalizer: Any = None) -> Tokenizer:
    """Train a BPE tokenizer over characters, with bytes for those it does not know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Split(" ", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["the water of the sea is cold in the north", "the sea"] * 3, trainer)
    described = config_of(tokenizer)
    described["added_tokens"] = described["added_tokens"][:3]  # the bytes are plain tokens
    return Tokenizer.from_str(json.dumps(described))


def train_words(decoder: Any) -> Tokenizer:
    """Make a WordPiece tokenizer."""
    words = ("[UNK]", "[CLS]", "the", "sea", "is", "co", "##ld", "##s", ".", ",", "'", "t", "don", "北")
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoder
    return tokenizer


def train_suffixes() -> Tokenizer:
    """Train a BPE tokenizer whose last token of a word says so."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(["the water of the sea is cold in the north", "the sea"] * 3, trainer)
    return tokenizer


def with_decoder(tokenizer: Tokenizer, decoder: Any) -> Tokenizer:
    """Return a copy that can decode."""
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.decoder = decoder
    return copied


def config_of(tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    return config


def cut(*patterns: str, has_digits: bool = False) -> Any:
    """Cut by patterns, one after another, then by digits, then into bytes."""
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    parts += [pre_tokenizers.Digits(individual_digits=True)] * has_digits
    return pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


# What the models' own tokenizer.json files say.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
DEEPSEEK2 = (
    "[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ]+",
    "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    "\\s+$",
    "[一-龥ࠀ-一가-퟿]+",
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])
TOKENIZERS = {
    "plain": train(),
    "digits": train(DIGITS),
    "normalized": train(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "llama3": train(cut(LLAMA3)),
    "qwen": train(cut(QWEN), normalizers.NFC()),
    "deepseek2": train(cut(*DEEPSEEK2, has_digits=True)),
    "deepseek3": train(cut(*DEEPSEEK3)),
}
PLAIN_SPACES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
DECODED = {
    "byte-level": with_decoder(TOKENIZERS["llama3"], decoders.ByteLevel()),
    "llama 2": train_pieces(decoders.Sequence([*PLAIN_SPACES, decoders.Strip(" ", 1, 0)]), None, LLAMA2),
    "gemma": train_pieces(decoders.Sequence(PLAIN_SPACES), None, normalizers.Replace(" ", "▁")),
    "metaspace": train_pieces(decoders.Metaspace(), pre_tokenizers.Metaspace()),
    "metaspace, first": train_pieces(
        decoders.Metaspace(prepend_scheme="first"), pre_tokenizers.Metaspace(prepend_scheme="first")
    ),
    "wordpiece": train_words(decoders.WordPiece()),
    "wordpiece as it is": train_words(decoders.WordPiece(cleanup=False)),
    "suffixes": train_suffixes(),
    "no decoder": train(),
}
# What a piece becomes depends on more than itself.
BY_PLACE = {
    "marks the first piece": train(pre_tokenizers.Metaspace()),
    "puts a space before each piece": train(pre_tokenizers.ByteLevel(add_prefix_space=True)),
}
# What the special tokens take depends on what is beside them.
BY_NEIGHBOUR = {
    "takes spaces after the token": train(rstrip=True),
    "takes spaces before the token": train(lstrip=True),
    "a token only beside spaces": train(single_word=True),
}
