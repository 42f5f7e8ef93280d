"""A line of a batch that runs: from its text to requests, and from their results to its line of output.

    {"id": "batch_req_…", "custom_id", "response": {"status_code", "request_id", "body"}, "error": null}

The ids of a line's requests follow from the batch and the line's number, so a front door that takes over
finds them. Knows nothing of files and of other lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from config.errors import ServiceError
from frontdoor.accepting import Accepted, check_number, make_requests
from frontdoor.batches.endpoints import ENDPOINTS, Question
from frontdoor.http.bodies import parse_json
from frontdoor.http.errors import GenerationFailed, body_of
from frontdoor.http.events import to_json
from frontdoor.served_model import check_model
from frontdoor.state import Caller, FrontDoor
from spool import Request, Result
from spool.batches import Batch, BatchLine, Ended, line_request_id

CLOSING_MESSAGES = {
    "expired": "the batch's completion window ended before this line had an answer",
    "cancelled": "the batch was cancelled before this line had an answer",
}
_BYTES_A_TOKEN = 6  # in a request's file


@dataclass(frozen=True)
class OpenLine:
    """A line whose requests are in the spool, but for the `unsubmitted` ones.

    size: about that of its requests' files.
    """

    number: int
    custom_id: str
    question: Question
    requests: Sequence[Request]
    accepted: Sequence[Accepted]
    unsubmitted: list[Request] = field(default_factory=list)
    size: int = 0


async def open_line(front: FrontDoor, batch: Batch, number: int, line: BatchLine) -> OpenLine:
    """Make the requests of a line; none is submitted.

    Raises:
        ServiceError: the line's body is refused, as its route would refuse it.
    """
    endpoint = ENDPOINTS[batch.endpoint]
    body = parse_json(bytes(line.body), endpoint.model)
    check_model(front, body.model)
    front.hints.note(body)
    question = endpoint.read(front, body)
    check_number(question.drafts, question.num_choices)
    id = line_request_id(batch.id, number)
    requests, accepted = await make_requests(
        front,
        question.drafts,
        caller=Caller(batch.owner, f"{batch.id}:{number}", id, received_unix=0.0),
        num_choices=question.num_choices,
        seed=int(id[:13], 16),
    )
    texts = sum(len(request.text or "") for request in requests)
    size = texts + _BYTES_A_TOKEN * sum(len(request.token_ids or ()) for request in requests)
    # Without its prompt an answer is not kept for a next turn: those of clients must not make way for it.
    accepted = [replace(each, prompt=None) for each in accepted]
    return OpenLine(number, line.custom_id, question, requests, accepted, size=size)


def answer_line(batch: Batch, line: OpenLine, results: Sequence[Result]) -> Ended:
    """Write the output of a line from all its results, or from those up to its first error."""
    try:
        for result in results:
            if result.error is not None:
                raise GenerationFailed(result.error)
        body = line.question.write(line.accepted, results)
    except ServiceError as error:
        return refuse_line(batch, line.number, line.custom_id, error)
    return _ended(batch, line.number, line.custom_id, 200, body)


def refuse_line(batch: Batch, number: int, custom_id: str, error: ServiceError) -> Ended:
    """Write the output of a line that ended in an error."""
    return _ended(batch, number, custom_id, error.status, body_of(error))


def close_line(batch: Batch, number: int, custom_id: str, closing: str) -> Ended:
    """Write the output of a line that has no answer when its batch ends. closing: the batch's last status."""
    error = {"code": f"batch_{closing}", "message": CLOSING_MESSAGES[closing]}
    return _write(batch, number, custom_id, None, error)


def _ended(batch: Batch, number: int, custom_id: str, status: int, body: dict[str, Any]) -> Ended:
    response = {"status_code": status, "request_id": line_request_id(batch.id, number), "body": body}
    return _write(batch, number, custom_id, response, None)


def _write(
    batch: Batch, number: int, custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None
) -> Ended:
    id = f"batch_req_{line_request_id(batch.id, number)}"
    output = to_json({"id": id, "custom_id": custom_id, "response": response, "error": error}).encode()
    is_error = response is None or response["status_code"] != 200
    return Ended(number, is_error, output)
