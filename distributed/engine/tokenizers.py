"""Rank 0's tokenizer, loaded in a thread beside its weights: that takes as long as a small model's weights.

Knows no ring and no requests.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from config import Settings
from prompts.tokenizer import PromptTokenizer, load_tokenizer


def begin_loading(settings: Settings) -> Callable[[], PromptTokenizer]:
    """Start to load; the function returned waits for the end, and raises what went wrong."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizers")
    loading = executor.submit(load_tokenizer, settings)
    executor.shutdown(wait=False)
    return loading.result
