"""A token log gives back what was appended, up to where it can be believed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spool import (
    FileSystem,
    LogCut,
    LogHeader,
    SpoolUnavailable,
    TokenLogprob,
    TokenLogReader,
    TokenLogWriter,
    TokenRecord,
)
from spool.token_log import read_log

HEADER = LogHeader("tiny", "aa", "bb")
RECORDS = [TokenRecord(index, 100 + index, f"w{index} ", TokenLogprob(7, -0.5 * index)) for index in range(5)]

texts = st.text(st.characters(), max_size=12)
_numbers = st.none() | st.floats(max_value=0, allow_nan=False, allow_infinity=False)
_ids = st.integers(0, 200_000)
_alternatives = st.lists(st.tuples(_ids, _numbers), max_size=3).map(tuple)
logprobs = st.none() | st.builds(TokenLogprob, _ids, _numbers, _alternatives)
tokens = st.lists(st.tuples(st.integers(0, 200_000), texts, logprobs), max_size=12)


def _records(drawn: list[tuple[int, str, TokenLogprob | None]]) -> list[TokenRecord]:
    return [TokenRecord(index, *token) for index, token in enumerate(drawn)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def _write(path: Path, records: list[TokenRecord], header: LogHeader | None = None) -> None:
    with TokenLogWriter(path, header=header) as writer:
        writer.append(records)


@given(tokens, st.none() | st.builds(LogHeader, texts, texts, texts))
@settings(deadline=None)
def test_records_come_back_as_they_were(
    drawn: list[tuple[int, str, TokenLogprob | None]], header: LogHeader | None
) -> None:
    """Any texts, lone surrogates and newlines included, are the same after the disk."""
    records = _records(drawn)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        _write(path, records, header)
        assert read_log(path).records == records
        with TokenLogWriter(path) as writer:
            assert writer.resumed == tuple(records)
            assert writer.header == header


@given(st.integers(0, 10**6), st.integers(0, 8))
@settings(deadline=None)
def test_damage_at_any_byte_cuts_there_and_never_lies(at: int, bit: int) -> None:
    """Torn (bit 8) or flipped at any offset: what is read is a true beginning, to go on from."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        _write(path, RECORDS, HEADER)
        content = bytearray(path.read_bytes())
        at %= len(content)
        if bit == 8:
            del content[at:]
        else:
            content[at] ^= 1 << bit
        path.write_bytes(content)
        kept = read_log(path).records
        assert kept == RECORDS[: len(kept)]
        with TokenLogWriter(path, header=HEADER) as writer:
            assert writer.resumed == tuple(kept)
            assert writer.header == HEADER
            writer.append(RECORDS)
        assert read_log(path).records == RECORDS


def test_line_is_plain_json(path: Path) -> None:
    """Any JSON reader can look into a log."""
    _write(path, [TokenRecord(0, 42, ' "Paris"\n')], HEADER)
    header, line = (json.loads(line) for line in path.read_text().splitlines())
    assert (
        header.items()
        >= {"version": 1, "model": "tiny", "weights_hash": "aa", "tokenizer_hash": "bb"}.items()
    )
    assert line.items() >= {"index": 0, "token_id": 42, "text": ' "Paris"\n'}.items()


def test_logprob_that_json_cannot_hold_is_null(path: Path) -> None:
    """Minus infinity becomes null instead of broken JSON."""
    _write(path, [TokenRecord(0, 1, "a", TokenLogprob(1, float("-inf")))])
    assert read_log(path).records == [TokenRecord(0, 1, "a", TokenLogprob(1, None))]


def test_reader_follows_the_writer(path: Path) -> None:
    """A reader that was there first gets each record once, in order."""
    reader = TokenLogReader(path)
    assert reader.read_new() == []
    with TokenLogWriter(path, header=HEADER) as writer:
        assert reader.read_new() == []
        assert reader.header == HEADER
        writer.append(RECORDS[:2])
        assert reader.read_new() == RECORDS[:2]
        assert reader.read_new() == []
        writer.append(RECORDS[2:])
    assert reader.read_new() == RECORDS[2:]
    assert reader.next_index == 5


def test_line_without_its_newline_is_not_there_yet(path: Path) -> None:
    """Half a line is invisible until it is whole."""
    _write(path, RECORDS)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    reader = TokenLogReader(path)
    assert reader.read_new() == RECORDS[:4]
    path.write_bytes(content)
    assert reader.read_new() == RECORDS[4:]


def test_records_of_one_step_are_one_write(path: Path) -> None:
    """A step's records go out with a single system call."""

    class Counting(FileSystem):
        num_appends = 0

        def append(self, fd: int, data: bytes) -> int:
            self.num_appends += 1
            return super().append(fd, data)

    fs = Counting()
    with TokenLogWriter(path, fs) as writer:
        writer.append(RECORDS)
    assert fs.num_appends == 1


def test_repeated_records_are_skipped_and_gaps_refused(path: Path) -> None:
    """An append may be repeated as it was; an index left out is a mistake."""
    with TokenLogWriter(path) as writer:
        writer.append(RECORDS[:3])
        writer.append(RECORDS[:4])
        with pytest.raises(ValueError, match="token 4 is missing"):
            writer.append([TokenRecord(7, 1, "")])
    assert read_log(path).records == RECORDS[:4]


@pytest.mark.parametrize("num_bytes", [0, 1, 60, 100, 150])
def test_full_disk_leaves_whole_lines_and_the_append_can_be_repeated(path: Path, num_bytes: int) -> None:
    """A short write keeps no half line; after the disk has room the same append completes the log."""

    class Full(FileSystem):
        is_full = True

        def append(self, fd: int, data: bytes) -> int:
            if self.is_full and num_bytes == 0:
                raise OSError(errno.ENOSPC, "full")
            return super().append(fd, data[:num_bytes] if self.is_full else data)

    fs = Full()
    with TokenLogWriter(path, fs) as writer:
        with pytest.raises(SpoolUnavailable) as caught:
            writer.append(RECORDS)
        assert (caught.value.code, caught.value.status) == ("disk_full", 507)
        kept = read_log(path).records
        assert kept == RECORDS[: writer.next_index]
        assert path.read_bytes().count(b"\n") == len(kept)
        fs.is_full = False
        writer.append(RECORDS)
    assert read_log(path).records == RECORDS


def test_half_line_that_cannot_be_taken_back_stops_the_log(path: Path) -> None:
    """Nothing is ever appended behind half a line: it is taken back first, whenever that works again."""

    class Broken(FileSystem):
        is_broken = True

        def append(self, fd: int, data: bytes) -> int:
            return super().append(fd, data[:70] if self.is_broken else data)

        def truncate(self, fd: int, num_bytes: int) -> None:
            if self.is_broken:
                raise OSError(errno.EIO, "broken")
            super().truncate(fd, num_bytes)

    fs = Broken()
    with TokenLogWriter(path, fs) as writer:
        for _ in range(2):
            with pytest.raises(SpoolUnavailable):
                writer.append(RECORDS)
        fs.is_broken = False
        writer.append(RECORDS)
    assert read_log(path).records == RECORDS


def _damage_line(path: Path, index: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:index], lines[index].replace(b"w", b"W"), *lines[index + 1 :]]))


def test_reader_learns_that_tokens_it_gave_out_are_gone(path: Path) -> None:
    """Tokens regenerated in the place of ones already shown are a LogCut, however long the log is."""
    _write(path, RECORDS)
    reader = TokenLogReader(path)
    assert reader.read_new() == RECORDS
    _damage_line(path, 2)
    others = [TokenRecord(index, 500 + index, "zz ") for index in (2, 3, 4)]
    with TokenLogWriter(path) as writer:
        writer.append(others)
    with pytest.raises(LogCut):
        reader.read_new()
    assert reader.read_new() == RECORDS[:2] + others


def test_cut_behind_what_a_reader_has_seen_does_not_disturb_it(path: Path) -> None:
    """A log cut beyond a reader's place, or regenerated to the very same bytes, is simply read on."""
    _write(path, RECORDS[:2])
    early, late = TokenLogReader(path), TokenLogReader(path)
    assert early.read_new() == RECORDS[:2]
    _write(path, RECORDS)
    assert late.read_new() == RECORDS
    _damage_line(path, 2)
    _write(path, RECORDS)
    assert early.read_new() == RECORDS[2:]
    assert late.read_new() == []


def test_appending_to_a_deleted_log_does_no_harm(path: Path) -> None:
    """The answer goes on; its text is in the result."""
    with TokenLogWriter(path) as writer:
        writer.append(RECORDS[:1])
        path.unlink()
        writer.append(RECORDS[1:])


def test_log_is_private_and_links_are_not_followed(path: Path, tmp_path: Path) -> None:
    """A log is 0600, and a link in its place is not written through."""
    _write(path, RECORDS)
    assert path.stat().st_mode & 0o777 == 0o600
    os.symlink(path, tmp_path / "link")
    with pytest.raises(SpoolUnavailable):
        TokenLogWriter(tmp_path / "link")
