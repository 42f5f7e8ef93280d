"""POST /v1/completions: continues plain texts or token ids without a chat template.

Converts the body to a draft for each prompt, and writes choices; knows nothing of the ring or the spool.
"""

from collections.abc import Sequence

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from frontdoor.accepting import Accepted
from frontdoor.encoding import Draft, with_suffix
from frontdoor.http.bodies import BodyRoute, json_body
from frontdoor.http.errors import InvalidRequest
from frontdoor.logprobs import completion_logprobs
from frontdoor.routes.openai_text import Asked, Choice, TextApi, answer_text
from frontdoor.schemas import CompletionBody
from frontdoor.state import FrontDoor
from prompts.detokenizer import Detokenizer
from spool import Result, TokenLogprob, TokenRecord

router = APIRouter(route_class=BodyRoute)


API = TextApi(prefix="cmpl", kind="text_completion", chunk_kind="text_completion")


@router.post("/v1/completions", openapi_extra=json_body("CompletionBody"))
async def completions(http: HttpRequest) -> Response:
    """Continue texts."""
    return await answer_text(http, API, CompletionBody, read_body)


def read_body(front: FrontDoor, body: CompletionBody) -> Asked:
    """Turn the body into a draft for each prompt.

    Raises:
        InvalidRequest: fields that exclude each other, or a suffix that this model cannot take.
    """
    num_choices, with_prompt = body.n or 1, body.echo and body.logprobs is not None
    if body.best_of is not None and body.best_of != num_choices:
        raise InvalidRequest("'best_of' must be equal to 'n': no answer is thrown away here", param="best_of")
    if body.most_tokens == 0 and not body.echo:
        raise InvalidRequest("'max_tokens' may only be 0 with 'echo'", param="max_tokens")
    if body.stream and with_prompt:
        raise InvalidRequest(
            "a stream has no logprobs of the prompt: 'echo' with 'logprobs' cannot stream", param="stream"
        )
    texts = front.tokenizer.detokenizer
    drafts = [
        Draft(
            prompt=with_suffix(front, prompt, body.suffix),
            sampling=body,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if with_prompt else None,
        )
        for prompt in body.prompt
    ]
    has_answer = body.most_tokens != 0

    def make_writer(index: int, _: Accepted) -> CompletionWriter:
        prompt = body.prompt[index // num_choices] if body.echo else ""
        shown = prompt if isinstance(prompt, str) else texts.text_of(prompt)
        return CompletionWriter(index, texts, shown, has_answer=has_answer)

    return Asked(drafts, num_choices, make_writer, has_answer)


class CompletionWriter:
    """Writes a choice of a completion, as a whole or in chunks."""

    def __init__(self, index: int, texts: Detokenizer, prompt: str, *, has_answer: bool) -> None:
        """Args: prompt: the text before the answer; has_answer: whether the answer has tokens of its own."""
        self._index, self._texts, self._prompt, self._has_answer = index, texts, prompt, has_answer
        self._num_sent = len(prompt)  # characters

    def opening(self) -> list[Choice]:
        return [self._choice(self._prompt)] if self._prompt else []

    def tokens(self, records: tuple[TokenRecord, ...]) -> list[Choice]:
        if not self._has_answer:
            return []
        text, tokens = "".join(record.text for record in records), [record.logprobs for record in records]
        logprobs = self._logprobs([token for token in tokens if token is not None], self._num_sent)
        self._num_sent += len(text)
        return [self._choice(text, logprobs)] if text or logprobs else []

    def done(self, result: Result) -> list[Choice]:
        return [self._choice("", finish_reason=result.finish_reason)]

    def whole(self, result: Result) -> Choice:
        tokens = [*(result.prompt_logprobs or ()), *(result.logprobs or () if self._has_answer else ())]
        start = 0 if result.prompt_logprobs else len(self._prompt)
        text = self._prompt + (result.text if self._has_answer else "")
        return self._choice(text, self._logprobs(tokens, start), result.finish_reason)

    def _logprobs(self, tokens: Sequence[TokenLogprob], start: int) -> Choice | None:
        return completion_logprobs(self._texts, tokens, start) if tokens else None

    def _choice(self, text: str, logprobs: Choice | None = None, finish_reason: str | None = None) -> Choice:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
