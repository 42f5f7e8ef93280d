"""An open answer: one request's sequence, text, token log and times on rank 0.

Knows the spool's messages and the clock; nothing of MLX, frames or the ring.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from typing import Any

from distributed.engine.constraints import Constraint
from distributed.engine.draw import DrawnToken
from distributed.engine.row_sampling import Mask, RowSampling, TokenCounts, mask_of
from distributed.engine.sequence import Sequence
from distributed.engine.text_stream import TextStream
from spool import Claim, Request, Result, TokenLogWriter, TokenRecord, Usage
from spool.messages import FinishReason, TokenLogprob


@dataclass
class RankShare:
    """One rank's work for one answer; a microbatch's busy time is divided evenly among its rows."""

    num_frames: int = 0
    busy_s: float = 0.0


@dataclass(eq=False)
class Answer:
    """A claimed request and its state until its result is written.

    `drawn`: what the newest step drew for it, after rejected drafts as well. `logprobs`: one an answer token,
    `prompt_logprobs`: of the prompt's tokens so far, where the request asks for them."""

    claim: Claim
    sequence: Sequence
    stream: TextStream
    log: TokenLogWriter
    num_ranks: int
    claimed_unix: float
    text: str = ""
    num_resumed_tokens: int = 0
    first_token_unix: float | None = None
    is_solo: bool = False  # marked in the spool as running alone
    constraint: Constraint | None = None  # of a grammar
    shares: list[RankShare] = field(init=False)
    drawn: Items[DrawnToken | None] = ()
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    _counts: TokenCounts | None = None
    _num_counted: int = 0
    _logged: TokenRecord | None = None  # must be drawn at its index

    def __post_init__(self) -> None:
        self.shares = [RankShare() for _ in range(self.num_ranks)]
        records = self.log.resumed
        if self.sequence.reads_prompt:
            self.prompt_logprobs.append(TokenLogprob(self.sequence.token_ids[0], None))
            # The last token is drawn again: a complete answer would not read its prompt.
            self._logged, records = (records[-1], records[:-1]) if records else (None, ())
        self._replay(records)

    @property
    def request(self) -> Request:
        return self.claim.request

    def sampling(self, drafts: Items[int] = (), masks: Items[Mask | None] = ()) -> list[RowSampling]:
        """Return the draws' parameters for the next token, and for the one after each draft.

        Args:
            masks: one a draw; empty: all tokens may be drawn.
        """
        params, first, num = self.request.params, self.sequence.num_answer_tokens, len(drafts) + 1
        masks = [*masks] or [None] * num
        if self._logged is not None and self._logged.index == first:
            masks[0] = mask_of(self._logged.token_id)
        counts = self._count()
        along = repeat(None) if counts is None else accumulate(drafts, TokenCounts.plus, initial=counts)
        return [
            RowSampling(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                seed=params.seed,
                choice=params.choice,
                index=index,
                frequency_penalty=params.frequency_penalty,
                presence_penalty=params.presence_penalty,
                repetition_penalty=params.repetition_penalty,
                counts=counts,
                logit_bias=params.logit_bias,
                logprobs=params.logprobs,
                mask=mask,
            )
            for index, counts, mask in zip(range(first, first + num), along, masks, strict=False)
        ]

    def _count(self) -> TokenCounts | None:
        """Return the counts of the tokens so far; None: no penalty needs them."""
        params, token_ids = self.request.params, self.sequence.token_ids
        if (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (0, 0, 1):
            return None
        if self._counts is None:
            self._counts = TokenCounts.of(token_ids, self.sequence.num_prompt_tokens)
        else:
            for token_id in token_ids[self._num_counted :]:
                self._counts = self._counts.plus(token_id)
        self._num_counted = len(token_ids)
        return self._counts

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why the tokens so far end the answer, or None."""
        if self.stream.is_stopped or self.sequence.ended_by == "stop":
            return "stop"
        return "length" if self.sequence.ended_by == "length" else None

    def record(self, token_ids: Items[int]) -> list[TokenRecord]:
        """Add the sequence's newest tokens to the text; return their records for the token log.

        Tokens after a stop string are dropped, from the sequence as well.
        """
        if self.first_token_unix is None:
            self.first_token_unix = time.time()
        first, records = self.sequence.num_answer_tokens - len(token_ids), []
        for number, token_id in enumerate(token_ids, start=1):
            logprobs = self._logprobs_of(number - 1)
            text = self._take(token_id, logprobs, is_newest=number == len(token_ids))
            records.append(TokenRecord(first + number - 1, token_id, text, logprobs))
            if self.stream.is_stopped:
                del self.sequence.token_ids[self.sequence.num_prompt_tokens + first + number :]
                break
        return records

    def credit(self, busy_us: Items[int], num_rows: int) -> None:
        """Add a microbatch's busy times, microseconds by rank; `num_rows` share them."""
        for share, us in zip(self.shares, busy_us, strict=True):
            share.num_frames += 1
            share.busy_s += us / 1e6 / num_rows

    def result(self, finish_reason: FinishReason, first_layers: Items[tuple[int, int]]) -> Result:
        """Build the final answer; `first_layers` is (first layer, number of layers) by rank."""
        sequence, request = self.sequence, self.request
        return Result(
            id=request.id,
            model=request.model,
            text=self.text,
            token_ids=tuple(sequence.token_ids[sequence.num_prompt_tokens :]),
            finish_reason=finish_reason,
            usage=Usage(sequence.num_prompt_tokens, sequence.num_answer_tokens, self._num_reused),
            performance={**self.times(), "ranks": self._ranks(first_layers)},
            error=None,
            finished_unix=time.time(),
            owner=request.owner,
            seed=request.params.seed,
            logprobs=None if request.params.logprobs is None else tuple(self.logprobs),
            prompt_logprobs=tuple(self.prompt_logprobs) or None,
        )

    def times(self) -> dict[str, Any]:
        """Return the request's times in seconds and its rates in tokens a second."""
        now, created = time.time(), self.request.created_unix
        received = self.request.received_unix or created
        first = self.first_token_unix or now
        num_new = self.sequence.num_answer_tokens - self.num_resumed_tokens
        num_prefilled = self.sequence.num_prompt_tokens - self._num_reused
        return {
            "accept_s": round(max(0.0, created - received), 6),
            "queue_s": round(max(0.0, self.claimed_unix - created), 6),
            "prefill_s": round(first - self.claimed_unix, 6),
            "ttft_s": round(max(0.0, first - created), 6),
            "prefill_tokens_per_s": _rate(num_prefilled, first - self.claimed_unix),
            "decode_tokens_per_s": _rate(num_new - 1, now - first),
            "total_s": round(max(0.0, now - created), 6),
        }

    @property
    def _num_reused(self) -> int:
        """Prompt tokens whose KV was reused; a resumed answer may reuse KV of its own tokens as well."""
        return min(self.sequence.num_reused_tokens, self.sequence.num_prompt_tokens)

    def _replay(self, records: Items[TokenRecord]) -> None:
        """Continue from the log of an earlier attempt."""
        self.num_resumed_tokens = len(records)
        for record in records:
            self.sequence.token_ids.append(record.token_id)
            self._take(record.token_id, record.logprobs, is_newest=True)

    def _logprobs_of(self, place: int) -> TokenLogprob | None:
        """Return the logprobs of a newest token, if the request asks for them."""
        drawn = None if self.request.params.logprobs is None else self.drawn[place]
        return None if drawn is None else TokenLogprob(*drawn)

    def _take(self, token_id: int, logprobs: TokenLogprob | None, *, is_newest: bool) -> str:
        if logprobs is not None:
            self.logprobs.append(logprobs)
        text = self.stream.add(token_id)
        if self.stream.is_stopped or (is_newest and self.finish_reason is not None):
            text += self.stream.finish()
        self.text += text
        return text

    def _ranks(self, first_layers: Items[tuple[int, int]]) -> list[dict[str, Any]]:
        total = sum(share.busy_s for share in self.shares) or 1.0
        return [
            {
                "rank": rank,
                "first_layer": first,
                "num_layers": count,
                "num_frames": share.num_frames,
                "busy_s": round(share.busy_s, 6),
                "busy_share": round(share.busy_s / total, 4),
            }
            for rank, (share, (first, count)) in enumerate(zip(self.shares, first_layers, strict=True))
        ]


def _rate(count: int, seconds: float) -> float:
    return round(max(count, 0) / seconds, 3) if seconds > 0 else 0.0
