"""Files and batches on the disk: nothing half-written is seen, and a journal keeps what it said it keeps."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool import CorruptRequest, Spool, SpoolUnavailable
from spool.batches import (
    Batch,
    BatchState,
    BatchStore,
    Ended,
    Journal,
    LineChecker,
    follow_journal,
    line_request_id,
    make_batch_id,
    make_record,
    scan_lines,
)
from tests.fakes.simulated_fs import Crash, Disk
from tests.fakes.spool_fakes import FailingFileSystem

ROOT = Path("/spool")
NUM_LINES = 6


@pytest.fixture
def store(spool: Spool) -> BatchStore:
    return BatchStore(spool)


def upload(store: BatchStore, text: bytes = b"{}\n", **more: Any) -> str:
    with store.files.begin() as upload:
        upload.append(text)
        return upload.publish(make_record("in.jsonl", "batch", owner="", **more)).id


def make_batch(store: BatchStore, text: bytes = b"{}\n") -> Batch:
    now = time.time()
    batch = Batch(make_batch_id(), "/v1/completions", upload(store, text), "24h", now, now + 86_400)
    return store.create(batch)


def lines_of(store: BatchStore, file_id: str | None) -> list[str]:
    return store.files.path(file_id).read_text().splitlines() if file_id else []


def test_a_file_is_found_listed_and_deleted(store: BatchStore) -> None:
    """The newest comes first; an upload that was given up leaves nothing."""
    first, second = upload(store, b"abc"), upload(store, b"de")
    with store.files.begin() as given_up:
        given_up.append(b"half")
    assert [file.id for file in store.files.list_all()] == [second, first]
    assert store.files.count_bytes() == 5
    found = store.files.find(first)
    assert found is not None
    assert (found.num_bytes, found.filename) == (3, "in.jsonl")
    assert store.files.delete(first)
    assert not store.files.delete(first)
    assert store.files.find(first) is None
    assert set(store.spool.names(store.spool.folder.tmp)) == set()


@pytest.mark.parametrize(
    "id", ["", "..", "file-", f"file-{'0' * 31}g", f"file-{'0' * 32}/../x", "batch.json"]
)
def test_an_id_of_another_form_is_unknown(store: BatchStore, id: str) -> None:
    """It never becomes part of a path."""
    assert store.files.find(id) is None
    assert not store.files.delete(id)
    assert store.find(id) is None


def test_files_expire_by_their_own_time_or_the_retention(store: BatchStore) -> None:
    """With retention 0 only the former counts; leftovers of a crash go when they are old."""
    kept, short = upload(store), upload(store, lives_seconds=3600)
    leftover = store.files.path(f"file-{'a' * 32}")
    leftover.write_bytes(b"x")
    now = time.time()
    assert store.files.sweep(now, 0) == 0
    store.files.sweep(now + 4000, 0)
    assert store.files.find(short) is None
    assert not leftover.exists()
    assert store.files.find(kept) is not None
    assert store.files.sweep(now + 4000, 3000) == 1


def test_a_batch_keeps_its_input_when_the_file_is_deleted(store: BatchStore) -> None:
    """The input has a name of its own."""
    batch = make_batch(store, b"one\ntwo\n")
    store.files.delete(batch.input_file_id)
    texts = [raw.text for raw in scan_lines(store.spool.fs, store.input(batch.id), 100)]
    assert texts == [b"one", b"two"]


def test_an_unknown_input_makes_no_batch(store: BatchStore) -> None:
    """What the attempt left is no batch, and is swept when it is old."""
    now = time.time()
    with pytest.raises(FileNotFoundError):
        store.create(Batch(make_batch_id(), "/x", f"file-{'0' * 32}", "24h", now, now))
    assert store.list_all() == []
    assert store.sweep(now + 7200, 1) == 1


def test_a_cancel_shows_at_once_until_the_batch_has_ended(store: BatchStore) -> None:
    """The runner's state wins only when it is the last one."""
    batch = make_batch(store)
    store.cancel(batch.id)
    store.cancel(batch.id)
    view = store.find(batch.id)
    assert view is not None
    assert view.status == "cancelling"
    store.write_state(batch.id, BatchState("completed", ended_unix=1.0))
    view = store.find(batch.id)
    assert view is not None
    assert view.status == "completed"
    assert store.sweep(time.time(), 10.0) == 1
    assert store.find(batch.id) is None


def test_one_process_runs_the_batches(spool: Spool) -> None:
    """Another one does when the first lets go."""
    first, second = BatchStore(spool), BatchStore(spool)
    assert first.try_lock()
    assert first.try_lock()
    assert not second.try_lock()
    first.unlock()
    assert second.try_lock()
    second.unlock()


def test_an_idempotency_key_is_one_batch_of_its_owner() -> None:
    assert make_batch_id("a", "key") == make_batch_id("a", "key")
    assert (
        len({make_batch_id("a", "key"), make_batch_id("b", "key"), make_batch_id("a"), make_batch_id("a")})
        == 4
    )


def test_a_damaged_record_is_said_and_hides_no_other(store: BatchStore) -> None:
    damaged, batch = make_batch(store), make_batch(store)
    path = store.input(damaged.id).with_name("batch.json")
    path.write_bytes(path.read_bytes().replace(b"24h", b"25h"))
    with pytest.raises(CorruptRequest):
        store.find(damaged.id)
    assert [view.batch.id for view in store.list_all()] == [batch.id]


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.just(b"x" * 50)), max_size=20),
    st.booleans(),
    st.integers(1, 7),
)
def test_lines_are_those_of_the_file(parts: list[bytes], ends: bool, chunk: int) -> None:
    """Wherever the pieces in which it is read begin; a too long line has no text."""
    text = b"\n".join(part.replace(b"\n", b"") for part in parts) + (b"\n" if ends else b"")
    fs = Disk().start_process()
    fs.write_new(Path("/f"), text, is_synced=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spool.batches.lines.CHUNK_BYTES", chunk)
        found = list(scan_lines(fs, Path("/f"), 40))
    wanted = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    assert [(raw.number, raw.text) for raw in found] == [
        (number, line if len(line) <= 40 else None) for number, line in wanted
    ]
    assert [text[raw.offset : raw.offset + raw.num_bytes] for raw in found] == [line for _, line in wanted]


GOOD = {"custom_id": "a", "method": "POST", "url": "/x", "body": {}}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[]", "invalid_json_line"),
        (b'{"a": NaN}', "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (b"[" * 100_000, "invalid_json_line"),
        ({**GOOD, "custom_id": None}, "invalid_custom_id"),
        ({**GOOD, "custom_id": ""}, "invalid_custom_id"),
        ({**GOOD, "custom_id": "x" * 513}, "invalid_custom_id"),
        ({"custom_id": "a"}, "missing_required_parameter"),
        ({**GOOD, "more": 1}, "unknown_parameter"),
        ({**GOOD, "method": "GET"}, "invalid_method"),
        ({**GOOD, "url": "/y"}, "invalid_url"),
        ({**GOOD, "body": "text"}, "invalid_body"),
        ({**GOOD, "body": {"stream": True}}, "invalid_stream"),
        ({**GOOD, "body": {"model": "other"}}, "model_not_found"),
        ({**GOOD, "body": {"model": 7}}, "model_not_found"),
        (b"x" * 200_000, "line_too_long"),
        (GOOD, None),
        ({**GOOD, "body": {"model": "tiny", "stream": False, "messages": []}}, None),
    ],
)
def test_a_wrong_line_has_a_code(line: Any, code: str | None) -> None:
    """And names the line, and the member where there is one."""
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    fs = Disk().start_process()
    fs.write_new(Path("/f"), text, is_synced=False)
    (raw,) = scan_lines(fs, Path("/f"), 150_000)
    checker = LineChecker("/x", 150_000, lambda name: name in (None, "tiny"))
    error = checker.check(raw)
    assert (error and error.code) == code
    assert error is None or error.line == 1


def test_a_custom_id_stands_once_in_a_file() -> None:
    fs = Disk().start_process()
    fs.write_new(Path("/f"), b"\n".join([json.dumps(GOOD).encode()] * 2), is_synced=False)
    checker = LineChecker("/x", 1000)
    errors = [checker.check(raw) for raw in scan_lines(fs, Path("/f"), 1000)]
    assert errors[0] is None
    assert errors[1] is not None
    assert (errors[1].code, errors[1].line, errors[1].message) == (
        "duplicate_custom_id",
        2,
        "line 1 has the same 'custom_id'",
    )


def entry(number: int) -> Ended:
    return Ended(number, number % 3 == 0, json.dumps({"line": number}).encode())


def test_a_line_that_is_journaled_twice_counts_once(store: BatchStore) -> None:
    """Both files have the lines in the order of the input."""
    batch = make_batch(store)
    with store.open_journal(batch.id) as journal:
        journal.append([entry(4), entry(3)])
        journal.append([entry(1), entry(4), entry(1)])
    with store.open_journal(batch.id) as journal:
        journal.append([entry(2)])
        assert (len(journal.ended), journal.num_failed) == (4, 1)
        ids = store.publish_outputs(batch, journal)
        assert ids == store.publish_outputs(batch, journal)
    assert [json.loads(line)["line"] for line in lines_of(store, ids[False])] == [1, 2, 4]
    assert [json.loads(line)["line"] for line in lines_of(store, ids[True])] == [3]
    followed = [found.number for found, _ in follow_journal(store.journal_path(batch.id), store.spool.fs, 0)]
    assert followed == [4, 3, 1, 2]
    store.tidy(batch.id)
    assert list(follow_journal(store.journal_path(batch.id), store.spool.fs, 0)) == []


@given(st.data())
def test_a_damaged_journal_is_cut_at_the_damage(data: st.DataObject) -> None:
    """Never is a line read that was not written."""
    disk = Disk()
    fs, path = disk.start_process(), Path("/journal")
    with Journal(path, fs, is_synced=False) as journal:
        journal.append([entry(number) for number in range(1, NUM_LINES + 1)])
    inode = disk.find(path)
    whole = inode.data
    at = data.draw(st.integers(0, len(whole) - 1))
    inode.data = whole[:at] + data.draw(st.sampled_from([b"", b"\0", b"\n", b"7"])) + whole[at + 1 :]
    with Journal(path, fs, is_synced=False) as journal:
        for number, place in journal.ended.items():
            assert journal.read(place) == entry(number).output
        journal.append([entry(number) for number in range(1, NUM_LINES + 1)])
    with Journal(path, fs, is_synced=False) as journal:
        assert sorted(journal.ended) == list(range(1, NUM_LINES + 1))


def test_a_full_disk_counts_nothing_and_the_repetition_all(tmp_path: Path) -> None:
    """Half an entry that was written is cut off before the next one."""
    fs = FailingFileSystem("sync", 28)
    fs.is_failing = True
    with Journal(tmp_path / "journal", fs, is_synced=True) as journal:
        with pytest.raises(SpoolUnavailable):
            journal.append([entry(1)])
        assert not journal.ended
        fs.is_failing = False
        journal.append([entry(2)])
        journal.append([entry(1)])
        assert journal.read(journal.ended[1]) == entry(1).output
    with Journal(tmp_path / "journal", fs, is_synced=True) as journal:
        assert sorted(journal.ended) == [1, 2]


@given(st.integers(0, 1 << 40))
def test_a_batch_survives_deaths_and_power_cuts_at_any_call(seed: int) -> None:
    """What was said to be on the disk is there; in the end each line is in one of the files, once."""
    disk, said, chance = Disk(), set[int](), random.Random(seed)
    batch: Batch | None = None
    Spool.open(ROOT, durability="power", fs=disk.start_process())
    for life in range(12):  # each may be longer than the one before, so that the last one comes to the end
        fs = disk.start_process()
        fs.num_calls_left = chance.randint(40, 120) + 20 * life
        try:
            store = BatchStore(Spool.open(ROOT, durability="power", fs=fs))
            if batch is None:
                made = make_batch(store)
                batch = made  # said to the client only now
            view = store.find(batch.id)
            assert view is not None
            if not view.state.has_ended:
                assert store.try_lock()
                with store.open_journal(batch.id) as journal:
                    assert said <= set(journal.ended)
                    for number in range(1, NUM_LINES + 1):
                        if number not in journal.ended:
                            journal.append([entry(number)])
                            said.add(number)
                    ids = store.publish_outputs(batch, journal)
                ended = BatchState("completed", output_file_id=ids[False], error_file_id=ids[True])
                store.write_state(batch.id, ended)
                store.tidy(batch.id)
            fs.num_calls_left = None
            view = store.find(batch.id)
            assert view is not None
            texts = [
                fs.read(store.files.path(id or ""), 1 << 20).splitlines()
                for id in (view.state.output_file_id, view.state.error_file_id)
            ]
            numbers = [[json.loads(line)["line"] for line in lines] for lines in texts]
            assert numbers == [[1, 2, 4, 5], [3, 6]]
            return
        except Crash:
            if chance.random() < 0.5:
                disk.cut_power(chance.randrange)
    pytest.fail("it never came to an end")


def test_the_ids_of_lines_are_always_the_same_and_all_different() -> None:
    ids = {line_request_id("batch_1", number) for number in range(100)}
    assert len(ids | {line_request_id("batch_2", 1)}) == 101
    assert line_request_id("batch_1", 5) in ids
