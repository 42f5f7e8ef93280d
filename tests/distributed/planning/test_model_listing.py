"""What the names of a model's files tell before any is read."""

import pytest

from distributed.planning.model_errors import UnsupportedModel
from distributed.planning.model_listing import check_files_listed

WEIGHTS = ("config.json", "model.safetensors")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("tiktoken.model", "tokenization_kimi.py"), r"\(tiktoken\.model alone.*take a conversion"),
        (("qwen.tiktoken", "vocab.txt"), r"\(qwen\.tiktoken alone.*take a conversion"),
        (("tokenizer.model", "tokenizer_config.json"), r"\(tokenizer\.model alone.*AutoTokenizer"),
        (("tekken.json",), r"\(tekken\.json alone.*AutoTokenizer"),
        (("vocab.json", "merges.txt"), r"\(vocab\.json alone.*AutoTokenizer"),
        ((), "no tokenizer.json, and no other tokenizer"),
    ],
)
def test_a_folder_without_tokenizer_json_is_refused_with_what_to_do(
    names: tuple[str, ...], said: str
) -> None:
    """By the kind of tokenizer that it has."""
    with pytest.raises(UnsupportedModel, match=said):
        check_files_listed("folder", [*WEIGHTS, *names])


def test_a_tokenizer_beside_tokenizer_json_is_no_fault() -> None:
    """Most folders have more than one form."""
    check_files_listed("folder", [*WEIGHTS, "tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"])
