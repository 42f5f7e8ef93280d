"""The speed lines: a rank as it is served against mlx_lm.generate's own loop, same model, same machine.

`server.py` runs as a ring of one on a spool of its own; the tokens of one greedy stream are counted from the
first to the last. mlx_lm.generate's generate_step does the same in this process, before.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import mlx.core as mx

from config import REPOSITORY_ROOT, Settings
from config.live import to_environment, with_values
from distributed.backends.choose import choose_backend
from distributed.self_test.parity import load_mlx_lm
from distributed.self_test.reporting import Report, Task
from prompts.mlx_lm_import import import_mlx_lm
from spool import Request, Result, SamplingParams, Spool, make_id

PROMPT = "The sea is wide and the wind is cold. " * 4
LOOK_S, ANSWER_LIMIT_S, STOP_LIMIT_S = 0.02, 120.0, 20.0
LOG = "rank.log"
NUM_ASKS = 2  # the last one counts


def run(task: Task, report: Report) -> None:
    """Report mlx_lm's rate, ours, and both to each other."""
    theirs = 0.0
    with report.attempt("speed-mlx-lm"):
        theirs = measure_mlx_lm(task)
        mx.clear_cache()  # its weights are free for the rank
        report.line("speed-mlx-lm", f"{theirs:.1f} tokens/s", {"tokens_per_s": theirs})
    with report.attempt("speed"):
        settings = make_settings(task)
        began = time.monotonic()
        with serving(settings):
            ready_s = time.monotonic() - began
            results = [ask(settings, number, task.amounts.num_tokens) for number in range(NUM_ASKS)]
        ours = float(results[-1].performance["decode_tokens_per_s"])
        ttft_s = float(results[-1].performance["ttft_s"])
        ratio = f", {ours / theirs:.2f} times mlx_lm.generate" if theirs else ""
        text = f"{ours:.1f} tokens/s by a served rank{ratio}"
        report.line("speed", text, {"tokens_per_s": ours, "ratio": ours / theirs if theirs else None})
        text = f"in {ready_s:.1f} s; then the first token of a prompt of {len(PROMPT)} in {ttft_s:.3f} s"
        report.line("ready", text, {"ready_s": round(ready_s, 2), "ttft_s": ttft_s})


def make_settings(task: Task) -> Settings:
    """The user's settings for a ring of one in the task's folder; drafts would not be mlx_lm's work."""
    values = {
        "STATE_DIR": str(task.folder / "state"),
        "MODEL_REPO": str(task.model),
        "LOCAL_RANKS": 1,
        "LAYER_SPLIT": "auto",
        "WORKER_HOSTS": "",
        "RING_ADDRESS": "127.0.0.1",
        "SPECULATION": "off",
    }
    return with_values(task.settings, values)


def measure_mlx_lm(task: Task) -> float:
    """Return the tokens a second of mlx_lm.generate, from its first token on."""
    backend = choose_backend(task.model)
    model = load_mlx_lm(task.model, None if backend.float_bytes is None else mx.float32)
    generate = import_mlx_lm("generate")
    prompt = mx.array([1 + number % 255 for number in range(len(PROMPT))])
    with generate.wired_limit(model, [generate.generation_stream]):
        for _ in range(NUM_ASKS):
            steps = generate.generate_step(prompt, model, max_tokens=task.amounts.num_tokens)
            times = [time.perf_counter() for _token in steps]
    return round((len(times) - 1) / (times[-1] - times[0]), 2)


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """Run server.py until the block ends.

    Raises:
        RuntimeError: it ended before it was ready, or was not ready in time.
    """
    environment = {**os.environ, **to_environment(settings)}
    with (
        (settings.state_dir.parent / LOG).open("w+b") as log,
        subprocess.Popen(
            [sys.executable, "server.py"],
            cwd=REPOSITORY_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        ) as process,
    ):
        try:
            _await_ready(process, settings)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_ready(process: subprocess.Popen[bytes], settings: Settings) -> None:
    deadline = time.monotonic() + settings.load_timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = (settings.state_dir.parent / LOG).read_text(errors="replace").splitlines()
            raise RuntimeError(f"the rank ended: {said[-1] if said else process.returncode}")
        with contextlib.suppress(OSError, ValueError):
            if json.loads((settings.run_dir / "ring.json").read_text()).get("phase") == "ready":
                return
        time.sleep(LOOK_S)
    raise RuntimeError("the rank was not ready within LOAD_TIMEOUT")


def ask(settings: Settings, number: int, num_tokens: int) -> Result:
    """Send a prompt through the rank's spool and wait for its answer; `number` makes each another one."""
    spool = Spool.open(settings.spool_dir, durability=settings.spool_durability)
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    request = Request(
        make_id(), params, f"{number}{PROMPT}", None, None, settings.model_name, created_unix=time.time()
    )
    id = spool.submit(request)
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while time.monotonic() < deadline:
        if (result := spool.read_result(id)) is not None:
            if result.error:
                raise RuntimeError(f"the request failed: {result.error}")
            return result
        time.sleep(LOOK_S)
    raise TimeoutError(f"no answer within {ANSWER_LIMIT_S:g} s")
