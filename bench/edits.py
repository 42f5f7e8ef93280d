"""Code editing: a file, an instruction, and the edited file as the answer, which is forced.

A small model does not edit code well, and drafts from the prompt are only right where the answer repeats it,
as a real edit does. So the answer is given: the request carries its tokens, and whatever the model says at a
place, the given token is drawn there. What remains is the cost of each step and how many drafts come true.
The edits are of files of this project (bench/edits/: before, after, and what to do). The request is put into
the spool, since no HTTP route takes forced tokens, and followed over HTTP.

Peers cannot be forced; their speed does not depend on which tokens they draw, so they get the same prompts
and draw the first tokens of their own. So does ours where it makes no drafts.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.dialects import Ask, Reply
from bench.ground import Ground
from bench.http_stream import StreamFailed, connect, make_request
from bench.load import LoadResult, Server, follow
from config import Settings
from prompts.tokenizer import PromptTokenizer
from spool import Request, SamplingParams, Spool

FOLDER = Path(__file__).resolve().parent / "edits"


@dataclass(frozen=True)
class Edit:
    """One edit of one file."""

    name: str
    instruction: str
    before: str
    after: str

    @property
    def prompt(self) -> str:
        """The question."""
        return (
            f"{self.instruction} Answer with the whole file and nothing else.\n\n```python\n{self.before}```"
        )

    @property
    def answer(self) -> str:
        """The forced answer."""
        return f"```python\n{self.after}```"


def read_edits() -> list[Edit]:
    """All edits, in the order of edits.json."""
    entries = json.loads((FOLDER / "edits.json").read_text(encoding="utf-8"))
    return [
        Edit(
            entry["name"],
            entry["instruction"],
            (FOLDER / f"{entry['name']}.before.txt").read_text(encoding="utf-8"),
            (FOLDER / f"{entry['name']}.after.txt").read_text(encoding="utf-8"),
        )
        for entry in entries
    ]


def make_edit_asks(edits: Sequence[Edit], max_tokens: int) -> list[Ask]:
    """The same questions with answers of the server's own."""
    return [Ask(edit.prompt, max_tokens) for edit in edits]


def run_forced(server: Server, ground: Ground, settings: Settings, *, limit_s: float) -> LoadResult:
    """Put every edit into the spool, one at a time, and follow its answer."""
    tokenizer = PromptTokenizer(ground.model_folder)
    spool = Spool.open(settings.spool_dir, durability=settings.spool_durability)
    replies = [Reply() for _ in read_edits()]
    start_s = time.perf_counter()
    for edit, reply in zip(read_edits(), replies, strict=True):
        request = make_forced_request(edit, tokenizer, settings.model_name)
        asyncio.run(_follow(server, spool, request, reply, start_s, limit_s))
    return LoadResult(replies, time.perf_counter() - start_s)


def make_forced_request(edit: Edit, tokenizer: PromptTokenizer, model: str) -> Request:
    """The request as it lies in the spool."""
    rendered = tokenizer.render([{"role": "user", "content": edit.prompt}])
    forced = tokenizer.encode_rendered(edit.answer)
    params = SamplingParams(max_tokens=len(forced), temperature=0.0)
    return Request(
        id=uuid.uuid4().hex,
        params=params,
        text=rendered.text,
        token_ids=tuple(tokenizer.encode_rendered(rendered.text, literals=rendered.literals)),
        tokenizer_hash=tokenizer.hash,
        model=model,
        created_unix=time.time(),
        forced_token_ids=tuple(forced),
        literals=rendered.literals,
    )


async def _follow(
    server: Server, spool: Spool, request: Request, reply: Reply, start_s: float, limit_s: float
) -> None:
    path = f"/requests/{request.id}/stream"
    try:
        exchange = await connect(server.host, server.port)
        spool.submit(request)
        async with asyncio.timeout(limit_s):
            get = make_request(server.host, server.port, path, None, server.headers)
            await follow(server, exchange, get, reply, start_s)
    except TimeoutError:
        reply.error = f"no complete answer in {limit_s:g} s"
    except (StreamFailed, OSError) as error:
        reply.error = str(error)
