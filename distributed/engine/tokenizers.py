"""Loads rank 0's tokenizer in a thread while its weights load. Knows no ring and no requests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from config import Settings
from prompts.tokenizer import PromptTokenizer, load_tokenizer


def begin_loading(settings: Settings) -> Callable[[], PromptTokenizer]:
    """Start to load; the returned function waits for the tokenizer, or raises the error of loading it."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizers")
    loading = executor.submit(load_tokenizer, settings)
    executor.shutdown(wait=False)
    return loading.result
