"""Rank 0's tokenizers, loaded in a thread beside its weights: that takes as long as a small model's weights.

Two of them read the same files: ours for prompts, mlx-lm's for the text of answers. Knows no ring and no
requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils

from prompts.tokenizer import PromptTokenizer


@dataclass(frozen=True)
class Tokenizers:
    """What rank 0 needs to read prompts and to write answers."""

    prompts: PromptTokenizer
    detokenizer: Any  # mlx_lm StreamingDetokenizer
    end_token_ids: frozenset[int]
    special_token_ids: frozenset[int]


def begin_loading(folder: Path) -> Callable[[], Tokenizers]:
    """Start to load; the function returned waits for the end, and raises what went wrong."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizers")
    loading = executor.submit(load, folder)
    executor.shutdown(wait=False)
    return loading.result


def load(folder: Path) -> Tokenizers:
    """Load from a model folder.

    Raises:
        TokenizerUnusable: a file is missing or broken.
    """
    prompts = PromptTokenizer(folder)
    wrapper = tokenizer_utils.load(folder, {"trust_remote_code": False})
    return Tokenizers(
        prompts, wrapper.detokenizer, _end_token_ids(folder, wrapper), frozenset(wrapper.all_special_ids)
    )


def _end_token_ids(folder: Path, wrapper: Any) -> frozenset[int]:
    """Return the ids that end an answer: the generation config's, else the config's, and the tokenizer's."""
    ids: set[int] = {int(i) for i in (wrapper.eos_token_id,) if i is not None}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        listed = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
        if listed is not None:
            ids.update(listed if isinstance(listed, list) else [listed])
            break
    return frozenset(ids)
