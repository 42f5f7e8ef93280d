"""Requests and results survive the disk unchanged, or are refused."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from spool import CorruptRequest, Request, Result, SamplingParams, Usage

ID = "0123456789abcdef" * 2
REQUEST = Request(
    id=ID,
    params=SamplingParams(max_tokens=8, stop=("\n",)),
    text="What is the capital of France?",
    token_ids=(1, 2, 3),
    tokenizer_hash="abc",
    model="tiny",
    created_unix=1.5,
)
RESULT = Result(ID, "tiny", "Paris", (7,), "stop", Usage(3, 1, 0), {"queue_s": 0.1}, None, 2.5)

ids = st.text("0123456789abcdef", min_size=32, max_size=32)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
floats = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
token_ids = st.lists(st.integers(0, 200_000), max_size=20).map(tuple)
sampling_params = st.builds(
    SamplingParams,
    max_tokens=counts,
    temperature=floats,
    top_p=floats,
    top_k=counts,
    min_p=floats,
    stop=st.lists(any_text, max_size=3).map(tuple),
    seed=st.integers(0, 2**63),
    choice=counts,
)
requests = st.builds(
    Request,
    id=ids,
    params=sampling_params,
    text=any_text,
    token_ids=st.none() | token_ids,
    tokenizer_hash=st.none() | any_text,
    model=any_text,
    owner=any_text,
    priority=st.integers(0, 9),
    created_unix=floats,
)
results = st.builds(
    Result,
    id=ids,
    model=any_text,
    text=any_text,
    token_ids=token_ids,
    finish_reason=st.sampled_from(["stop", "length", "cancelled", "error"]),
    usage=st.builds(Usage, counts, counts, counts),
    performance=st.dictionaries(any_text, floats | counts | any_text, max_size=3),
    error=st.none() | st.fixed_dictionaries({"code": any_text, "message": any_text, "status": counts}),
    finished_unix=floats,
)


@given(requests | results)
def test_a_message_comes_back_as_it_was(message: Request | Result) -> None:
    """Any request and any result is the same after the disk."""
    assert type(message).from_json(message.to_json()) == message


@given(requests, st.data())
def test_one_flipped_bit_is_noticed(request: Request, data: st.DataObject) -> None:
    """A request with any one bit flipped is never taken for a request."""
    content = bytearray(request.to_json())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptRequest):
        Request.from_json(bytes(content))


@given(st.integers(0, len(REQUEST.to_json()) - 1))
def test_truncated_file_is_noticed(num_bytes: int) -> None:
    """A file cut at any byte is never taken for a request."""
    with pytest.raises(CorruptRequest):
        Request.from_json(REQUEST.to_json()[:num_bytes])


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(content: bytes) -> None:
    """Foreign bytes are refused, without any other effect."""
    with pytest.raises(CorruptRequest):
        Request.from_json(content)


def _sealed(inner: bytes, version: int = 1, kind: str = "request") -> bytes:
    return b'{"version":%d,"kind":"%s","crc32":"%08x","body":%s}\n' % (
        version,
        kind.encode(),
        zlib.crc32(inner),
        inner,
    )


def _body(**changes: Any) -> bytes:
    body = json.loads(REQUEST.to_json())["body"] | changes
    return json.dumps(body, separators=(",", ":")).encode()


def test_file_is_plain_json() -> None:
    """Any JSON reader can look into a file, and the seal is as described."""
    assert json.loads(REQUEST.to_json())["body"]["text"] == REQUEST.text
    assert Request.from_json(_sealed(_body())) == REQUEST


def test_other_version_and_other_kind_are_refused() -> None:
    """A later version is refused, and a result is not a request."""
    with pytest.raises(CorruptRequest, match="version 2"):
        Request.from_json(_sealed(_body(), version=2))
    with pytest.raises(CorruptRequest):
        Request.from_json(RESULT.to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"id": "../../etc/passwd"},
        {"id": ID.upper()},
        {"id": ID + "\n"},
        {"priority": 10},
        {"priority": True},
        {"priority": "5"},
        {"text": None, "token_ids": None},
        {"token_ids": [1, "2"]},
        {"token_ids": [1.0]},
        {"params": {"temperature": 0.5}},
        {"params": {"max_tokens": 1, "stop": "x"}},
        {"params": []},
        {"created_unix": float("nan")},
        {"created_unix": 10**400},
    ],
)
def test_wrong_field_is_refused(change: dict[str, Any]) -> None:
    """A whole file with a field that is unknown, missing or of another type is refused."""
    with pytest.raises(CorruptRequest):
        Request.from_json(_sealed(_body(**change)))


@pytest.mark.parametrize("inner", [b"[" * 100_000, b"[]", b"nonsense", b'"\xff"', b"1" * 5000])
def test_whole_file_with_a_hostile_body_is_refused(inner: bytes) -> None:
    """A right checksum over nonsense is still refused, however deep or long."""
    with pytest.raises(CorruptRequest):
        Request.from_json(_sealed(inner))


def test_field_that_an_earlier_release_wrote_is_skipped() -> None:
    """A request that waited through an upgrade is served."""
    assert Request.from_json(_sealed(_body(deadline_unix=None, forced_token_ids=None))) == REQUEST
    quoting = replace(REQUEST, text='{"deadline_unix":1}')
    assert Request.from_json(quoting.to_json()) == quoting


def test_an_error_message_has_no_prompt_in_it() -> None:
    """The log names the wrong field, and never a prompt."""
    with pytest.raises(
        CorruptRequest,
        match=r"request file has a wrong field: Expected `str \| null`, got `array` - at `\$.text`",
    ) as caught:
        Request.from_json(_sealed(_body(text=["a secret"])))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("client_id", "label"),
    [("", ID), (ID, ID), ("job-7", f"{ID} (job-7)"), ("two\nlines", ID), ("x" * 129, ID)],
)
def test_label_names_both_ids(client_id: str, label: str) -> None:
    """Logs have the client's own id beside ours, where it has a sane one."""
    assert replace(REQUEST, client_id=client_id).label == label


def test_what_json_cannot_hold_is_refused_when_written() -> None:
    """Neither NaN nor half a surrogate pair reaches the disk. A text may spell NaN."""
    with pytest.raises(ValueError, match="JSON"):
        replace(REQUEST, params=SamplingParams(1, temperature=float("nan"))).to_json()
    with pytest.raises(ValueError, match="surrogates"):
        replace(REQUEST, text="\ud800").to_json()
    request = replace(REQUEST, text='"x":NaN, -Infinity')
    assert Request.from_json(request.to_json()) == request


def test_a_strange_figure_does_not_lose_an_answer() -> None:
    """A measurement may be NaN; the answer is written all the same."""
    result = replace(RESULT, performance={"tokens_per_s": float("inf")})
    assert Result.from_json(result.to_json()) == replace(RESULT, performance={"tokens_per_s": None})


def test_failed_result_has_code_message_and_status() -> None:
    """An error is a result like any other."""
    result = Result.failed(ID, model="m", code="corrupt", message="damaged", finished_unix=1.0)
    assert result.finish_reason == "error"
    assert result.error == {"code": "corrupt", "message": "damaged", "status": 500}
