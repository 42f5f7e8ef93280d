"""Prompt files in incoming/: each whole file becomes one request; wrong ones move to bad/ with a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spool import PromptFileDefaults, Spool, SpoolOwner
from spool.prompt_files import PATIENCE_SECONDS, SETTLE_SECONDS, read_prompt
from tests.fakes.simulated_fs import Crash, Disk
from tests.fakes.spool_fakes import answer, claim_one, make_request

DEFAULTS = PromptFileDefaults("tiny", 7)
PROMPT = b'{"prompt": "secret canary"}'


class Clock:
    """Time that passes on command."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("spool.prompt_files.time.monotonic", clock)
    return clock


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.open(tmp_path / "spool", durability="process", max_depth=2)


@pytest.fixture
def owner(spool: Spool) -> Iterator[SpoolOwner]:
    with SpoolOwner(spool, DEFAULTS) as owner:
        owner.recover()
        yield owner


def _scan_twice(owner: SpoolOwner, clock: Clock, seconds: float = SETTLE_SECONDS) -> None:
    owner.claim(1, only=[])
    clock.now += seconds
    owner.claim(1, only=[])


def test_prompt_file_becomes_a_request_with_an_answer(
    spool: Spool, owner: SpoolOwner, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its id is that of its name and content; the file goes once the request is accepted."""
    caplog.set_level("INFO")
    (spool.folder.incoming / "my prompt.json").write_bytes(PROMPT)
    _scan_twice(owner, clock)
    claim = claim_one(owner)
    request = claim.request
    assert (request.text, request.token_ids, request.is_chat) == ("secret canary", None, True)
    assert (request.model, request.params.max_tokens) == ("tiny", 7)
    assert request.id == read_prompt("my prompt.json", PROMPT, DEFAULTS).id
    assert os.listdir(spool.folder.incoming) == [claim.name.waiting]
    owner.complete(claim, answer(request))
    assert spool.read_result(request.id) is not None
    assert request.id in caplog.text
    assert "canary" not in caplog.text


def test_fields_of_a_prompt_file_are_honoured() -> None:
    """All that it may say reaches the request."""
    body = {"prompt": "x", "max_tokens": 3, "temperature": 1, "top_p": 0.5, "top_k": 4, "min_p": 0.1}
    body |= {"stop": "end", "ignore_eos": True, "seed": 9, "priority": 2, "raw": True}
    penalties = {"frequency_penalty": 0.5, "presence_penalty": -1.0, "repetition_penalty": 1.5}
    body |= {**penalties, "logit_bias": {"7": -100}}
    request = read_prompt("a", json.dumps(body).encode(), DEFAULTS)
    assert msgspec.to_builtins(request.params) == {
        **penalties,
        **{name: body[name] for name in ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")},
        "stop": ("end",),
        "ignore_eos": True,
        "logit_bias": {7: -100.0},
    }
    assert (request.priority, request.is_chat) == (2, False)
    assert type(request).from_json(request.to_json()) == request


def test_values_that_ask_for_nothing_are_those_of_the_routes() -> None:
    """Null, top_k -1, seed -1 and empty stop strings are none; top_p 0 is greedy; 16.0 is 16."""
    plain = read_prompt("a", PROMPT, DEFAULTS)
    nothing = {"max_tokens": None, "top_k": -1, "seed": -1, "stop": ["", ""], "min_p": 0, "raw": None}
    asked = read_prompt("a", json.dumps({"prompt": "x", **nothing}).encode(), DEFAULTS)
    assert msgspec.structs.replace(asked.params, seed=plain.params.seed) == plain.params
    greedy = read_prompt("a", b'{"prompt": "x", "top_p": 0, "temperature": 1, "max_tokens": 16.0}', DEFAULTS)
    assert (greedy.params.temperature, greedy.params.max_tokens) == (0.0, 16)
    assert type(greedy.params.max_tokens) is int


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ""},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": "\ud800"},
        {"max_tokens": 0},
        {"temperature": float("nan")},
        {"top_p": -0.1},
        {"top_k": -2},
        {"stop": ["x"] * 17},
        {"stop": ["\ud800"]},
        {"seed": 2**63},
        {"ignore_eos": 1},
        {"priority": 10},
        {"raw": 1},
        {"n": 2},
        {"repetition_penalty": -1},
        {"logit_bias": {"word": 1}},
        {"model": "other"},
    ],
)
def test_wrong_field_is_refused_without_repeating_it(change: dict[str, Any]) -> None:
    """A field that is wrong, unknown or not honoured is never ignored; the reason shows no content."""
    data = json.dumps({"prompt": "canary"} | change).encode()
    with pytest.raises(ValueError, match=r"missing or wrong|must be a JSON object") as caught:
        read_prompt("a.json", data, DEFAULTS)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"[]", b"3", b"{}", b"[" * 100_000, b"\xff", b"1" * 5000, b'{"prompt": "x"']
)
def test_wrong_file_goes_to_bad_with_the_reason(
    spool: Spool, owner: SpoolOwner, clock: Clock, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """Incomplete JSON becomes an error only after some seconds."""
    (spool.folder.incoming / "a.json").write_bytes(data)
    _scan_twice(owner, clock)
    _scan_twice(owner, clock, PATIENCE_SECONDS)
    assert [name.partition(".json")[0] for name in os.listdir(spool.folder.bad)] == ["a"]
    assert "moved 'a.json' from incoming/ to bad/" in caplog.text


def test_file_that_still_grows_is_left_alone(spool: Spool, owner: SpoolOwner, clock: Clock) -> None:
    """It becomes a request once it has stopped changing, however slowly it was copied."""
    path = spool.folder.incoming / "slow.json"
    for at in range(len(PROMPT)):
        with open(path, "ab") as file:
            file.write(PROMPT[at : at + 1])
        clock.now += SETTLE_SECONDS * 5
        assert owner.claim(1) == []
    assert os.listdir(spool.folder.bad) == []
    _scan_twice(owner, clock)
    assert claim_one(owner).request.text == "secret canary"


def test_copy_that_stalls_half_way_is_given_time(spool: Spool, owner: SpoolOwner, clock: Clock) -> None:
    """Half a JSON that did not change for a moment is not yet wrong."""
    path = spool.folder.incoming / "slow.json"
    path.write_bytes(PROMPT[:9])
    _scan_twice(owner, clock)
    _scan_twice(owner, clock)
    path.write_bytes(PROMPT)
    _scan_twice(owner, clock)
    assert claim_one(owner).request.text == "secret canary"


def test_full_queue_leaves_the_file_until_there_is_room(
    spool: Spool, owner: SpoolOwner, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt file waits for room in the queue; the log says so once."""
    for _ in range(2):
        spool.submit(make_request())
    (spool.folder.incoming / "a.json").write_bytes(PROMPT)
    for _ in range(3):
        _scan_twice(owner, clock)
    assert "a.json" in os.listdir(spool.folder.incoming)
    assert caplog.text.count("a.json") == 1
    owner.claim(2)
    _scan_twice(owner, clock)
    assert claim_one(owner).request.text == "secret canary"


def test_same_file_again_is_the_same_request(spool: Spool, owner: SpoolOwner, clock: Clock) -> None:
    """Name and content are the id: nothing runs twice; other content under the name is another request."""
    path = spool.folder.incoming / "a.json"
    for data, num_claims in ((PROMPT, 1), (PROMPT, 0), (b'{"prompt": "y"}', 1)):
        path.write_bytes(data)
        _scan_twice(owner, clock)
        claims = owner.claim(9)
        assert len(claims) == num_claims
        for claim in claims:
            owner.complete(claim, answer(claim.request))
        assert os.listdir(spool.folder.incoming) == []


@pytest.mark.parametrize("is_power_cut", [False, True])
def test_death_at_any_call_makes_no_second_request(clock: Clock, is_power_cut: bool) -> None:
    """Rank 0 dies at each call of taking a file in, and the power goes, at once or later: one answer."""
    num_calls, is_dead = 0, True
    while is_dead:
        disk = Disk()
        spool = Spool.open(Path("/spool"), fs=(fs := disk.start_process()))
        fs.write_new(spool.folder.incoming / "a.json", PROMPT, is_synced=True)
        fs.sync_folder(spool.folder.incoming)
        with SpoolOwner(spool, DEFAULTS) as owner:
            owner.recover()
            owner.claim(1, only=[])
            clock.now += SETTLE_SECONDS
            fs.num_calls_left = num_calls
            try:
                owner.claim(1, only=[])
                is_dead = False
            except Crash:
                num_calls += 1
            owner._lock._fd = None
            fs.die()
        if is_power_cut:
            disk.cut_power(lambda number: 0)
        for _ in range(2):
            spool = Spool.open(Path("/spool"), fs=(fs := disk.start_process()))
            with SpoolOwner(spool, DEFAULTS) as owner:
                owner.recover()
                _scan_twice(owner, clock)
                owner._lock._fd = None
            disk.cut_power(lambda number: number - 1 if is_power_cut else 0)
        spool = Spool.open(Path("/spool"), fs=(fs := disk.start_process()))
        with SpoolOwner(spool, DEFAULTS) as owner:
            owner.recover()
            for claim in owner.claim(9):
                owner.complete(claim, answer(claim.request))
            _scan_twice(owner, clock)  # the power cut may have brought the file back
        assert fs.names(spool.folder.done) == [f"{read_prompt('a.json', PROMPT, DEFAULTS).id}.json"]
        assert fs.names(spool.folder.incoming) == []
    assert num_calls > 15
