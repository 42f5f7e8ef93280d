"""Rank 0's side of the spool without a ring: when a suspect is cleared, what the log says of a request."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from msgspec.structs import replace

from config.disk_trouble import DiskTroubles
from distributed.answers import Answer
from distributed.intake import Intake, ModelFacts
from spool import Request, Spool, SpoolOwner, SpoolUnavailable
from spool.admission import DiskLimits
from spool.fsio import FileSystem
from spool.sweep import BLOCK_BYTES
from tests.spool_fakes import FailingFileSystem, make_request, open_owner, submit


class Letters:
    """Tokenizer and detokenizer in one: a token is a letter."""

    hash = "letters"

    def __init__(self) -> None:
        self.last_segment = ""

    def encode_raw(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return str(messages[0]["content"])

    def encode_rendered(self, text: str) -> list[int]:
        return self.encode_raw(text)

    def reset(self) -> None:
        self.last_segment = ""

    def finalize(self) -> None:
        self.last_segment = ""

    def add_token(self, token_id: int) -> None:
        self.last_segment = chr(token_id)


FACTS = ModelFacts("tiny", "weights", Letters(), Letters(), frozenset(), frozenset(), 256, 100)


@pytest.fixture
def fs() -> FailingFileSystem:
    return FailingFileSystem("append", errno.ENOSPC)


@pytest.fixture
def spool(tmp_path: Path, fs: FailingFileSystem) -> Spool:
    return Spool.open(tmp_path / "spool", durability="process", fs=fs)


@pytest.fixture
def owner(spool: Spool) -> Iterator[SpoolOwner]:
    """An owner whose queue has one suspect, known to its client as job-7."""
    spool.submit(replace(make_request(), client_id="job-7"))
    with open_owner(spool) as first:
        first.claim(1)
    with open_owner(spool) as owner:
        yield owner


def claim_suspect(owner: SpoolOwner) -> tuple[Intake, Answer]:
    intake = Intake(owner, owner.listen(), FACTS, ((0, 1),))
    (answer,) = intake.claim(1)
    assert answer.sequence.is_suspect
    return intake, answer


def add_token(intake: Intake, answer: Answer) -> None:
    """What the engine does with a token that was drawn."""
    answer.sequence.token_ids.append(ord("a"))
    intake.log_tokens([(answer, [ord("a")])])


def suspects_of(intake: Intake) -> list[Answer]:
    return [answer for answer in intake.answers.values() if answer.sequence.is_suspect]


def test_only_a_logged_token_clears_a_suspect(owner: SpoolOwner, fs: FailingFileSystem) -> None:
    """On a full disk the tokens are made and shown nowhere: a crash would take them back."""
    intake, answer = claim_suspect(owner)
    intake.mark_solo(answer.sequence)
    fs.is_failing = True
    add_token(intake, answer)
    assert answer in suspects_of(intake)
    fs.is_failing = False
    add_token(intake, answer)
    assert answer not in suspects_of(intake)
    assert [record.index for record in owner.spool.open_log(answer.request.id).read_new()] == [0, 1]
    intake.bell.close()


def test_every_line_about_a_request_has_both_of_its_ids(
    owner: SpoolOwner, fs: FailingFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    """Begin, suspicion, trouble and end: each line can be found by our id and by the client's."""
    with caplog.at_level(logging.INFO, logger="distributed.intake"):
        intake, answer = claim_suspect(owner)
        intake.mark_solo(answer.sequence)
        fs.is_failing = True
        add_token(intake, answer)
        fs.is_failing = False
        add_token(intake, answer)
        intake.end(answer, "length")
        intake.close()
    intake.bell.close()
    request: Request = answer.request
    lines = [record.getMessage() for record in caplog.records if record.name == "distributed.intake"]
    assert len(lines) == 4
    assert all(f"{request.id} (job-7)" in line for line in lines)
    assert not any(request.text in line for line in lines if request.text)
    for line, part in zip(lines, ("begins", "runs alone", "log not written", "length"), strict=True):
        assert part in line


def test_requests_that_cannot_begin_wait_and_run_when_there_is_room(
    owner: SpoolOwner, fs: FailingFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    """All that were claimed together go back, the attempt not counted; the log has one line of it."""
    for _ in range(3):
        submit(owner.spool)
    intake = Intake(owner, owner.listen(), FACTS, ((0, 1),))
    fs.is_failing = True
    for _ in range(3):
        assert intake.claim(4) == []
        intake._rest_ends = 0.0
    assert owner.spool.depth().num_waiting == 4
    fs.is_failing = False
    answers = intake.claim(4)
    assert len(answers) == 4
    assert [answer.claim.attempt for answer in answers] == [2, 1, 1, 1]
    assert caplog.text.count("token logs cannot be written") == 1
    intake.bell.close()


def test_a_request_that_cannot_go_back_is_put_back_later(
    owner: SpoolOwner, fs: FailingFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses even that does not end rank 0, nor lose the request."""

    def refuse(*_: object) -> NoReturn:
        raise SpoolUnavailable("cannot put a request back: Read-only file system", code="read_only")

    intake = Intake(owner, owner.listen(), FACTS, ((0, 1),))
    fs.is_failing = True
    with monkeypatch.context() as patch:
        patch.setattr(owner, "put_back", refuse)
        assert intake.claim(1) == []
        intake.retry()
    fs.is_failing = False
    assert intake.claim(1) == [], "it rests"
    intake._rest_ends = 0.0
    assert intake.claim(1) == [], "it is still claimed"
    intake.retry()
    assert len(intake.claim(1)) == 1
    intake.bell.close()


def test_a_queue_that_cannot_be_listed_ends_nothing(tmp_path: Path) -> None:
    """EIO at every look: nothing is claimed or cancelled, the last count stands, the next look is as any."""
    failing = FailingFileSystem("names", errno.EIO)
    spool = Spool.open(tmp_path / "spool", durability="process", fs=failing)
    submit(spool)
    with open_owner(spool) as owner:
        troubles = DiskTroubles()
        intake = Intake(owner, owner.listen(), FACTS, ((0, 1),), troubles)
        assert intake.depth().num_waiting == 1
        failing.is_failing = True
        assert (intake.claim(1), intake.cancelled()) == ([], [])
        assert intake.depth().num_waiting == 1
        assert len(troubles.sentences()) == 2
        failing.is_failing = False
        assert intake.depth().num_waiting == 1
        assert intake.cancelled() == []
        assert len(intake.claim(1)) == 1
        assert troubles.sentences() == []
        intake.bell.close()


def test_tokens_are_logged_on_a_full_disk_with_half_of_the_ballast(tmp_path: Path) -> None:
    """So a stream goes on; the other half stays for the result."""

    class FullUntilReleased(FileSystem):
        is_full = False

        def append(self, fd: int, data: bytes) -> int:
            if self.is_full and ballast.stat().st_size == DiskLimits().ballast_bytes:
                raise OSError(errno.ENOSPC, "full")
            return super().append(fd, data)

    fs, ballast = FullUntilReleased(), tmp_path / "spool" / "ballast"
    spool = Spool.open(tmp_path / "spool", durability="process", fs=fs)
    request = submit(spool)
    with open_owner(spool) as owner:
        intake = Intake(owner, owner.listen(), FACTS, ((0, 1),))
        (answer,) = intake.claim(1)
        fs.is_full = True
        add_token(intake, answer)
        assert [record.index for record in spool.open_log(request.id).read_new()] == [0]
        assert ballast.stat().st_size == DiskLimits().ballast_bytes // 2
        assert not owner.make_log_room()
        owner.sweep(time.time(), 1e9)
        assert ballast.stat().st_size == DiskLimits().ballast_bytes
        intake.bell.close()


def test_sweeps_are_counted_and_told(owner: SpoolOwner, caplog: pytest.LogCaptureFixture) -> None:
    """By their reason, over all sweeps; one that removed nothing says nothing."""
    intake, answer = claim_suspect(owner)
    intake.end(answer, "length")
    intake.close()
    then = time.time() - 1000
    os.utime(owner.spool.folder.result(answer.request.id), (then, then))
    with caplog.at_level(logging.INFO, logger="distributed.intake"):
        intake._sweep(3600.0, 2**20)
        assert intake.results == {"num_bytes": 3 * BLOCK_BYTES, "removed_by_age": 0, "removed_by_size": 0}
        assert "removed" not in caplog.text
        intake._sweep(3600.0, 1)
    assert intake.results == {"num_bytes": 0, "removed_by_age": 0, "removed_by_size": 1}
    assert "0 results removed by age, 1 early" in caplog.text
    intake.bell.close()
