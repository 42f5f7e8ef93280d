"""`submit FILE.jsonl`: lines become requests in a real spool, and their answers come back by id."""

import io
import json
import os
from pathlib import Path

import pytest

from cluster.commands.command_line import main
from cluster.commands.requests.submit import submit_file
from cluster.errors import ClusterError
from cluster.processes import identify
from cluster.supervisor.service import Service
from cluster.terminal import Terminal
from config import Settings
from spool import Spool
from tests.fakes.fake_engine import FakeEngine


def write_lines(folder: Path, *lines: str) -> Path:
    path = folder / "some.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def read_output(output: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_every_line_gets_an_id_and_with_wait_an_answer(
    tmp_path: Path, settings: Settings, spool: Spool
) -> None:
    """Equal lines are two requests; empty lines are none; the answers carry the ids that were told."""
    path = write_lines(tmp_path, '{"prompt": "a", "max_tokens": 3}', "", '{"prompt": "a", "max_tokens": 3}')
    output = io.StringIO()
    with FakeEngine(spool, settings.run_dir):
        assert submit_file(settings, Terminal(output), path, waits=True) == 0
    told = read_output(output)
    ids = [line["id"] for line in told if "number" in line]
    assert len(set(ids)) == 2
    answers = [line for line in told if "text" in line]
    assert sorted(str(line["id"]) for line in answers) == sorted(map(str, ids))
    assert {line["finish_reason"] for line in answers} == {"length"}


def test_requests_ask_for_the_model_of_the_running_service(
    tmp_path: Path, settings: Settings, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been started with flags that this command does not have."""
    running = Service({}, {"model": "served"}, identify(os.getpid()))
    monkeypatch.setattr("cluster.commands.requests.submit.read_service", lambda _: running)
    output = io.StringIO()
    submit_file(settings, Terminal(output), write_lines(tmp_path, '{"prompt": "a"}'), waits=False)
    request = spool.read_request(str(read_output(output)[0]["id"]))
    assert request is not None
    assert request.model == "served"


def test_without_a_service_the_requests_wait(
    tmp_path: Path, settings: Settings, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accepted is accepted: the next start answers them, as the command says."""
    path = write_lines(tmp_path, '{"prompt": "a"}')
    output = io.StringIO()
    assert submit_file(settings, Terminal(output), path, waits=False) == 0
    assert spool.state(str(read_output(output)[0]["id"])) == "waiting"
    assert "./launch.sh start" in capsys.readouterr().err


@pytest.mark.parametrize("line", ['{"prompt": 7}', "no json", '{"max_tokens": 3}', '{"prompt": "a", "n": 2}'])
def test_a_wrong_line_is_named_and_nothing_is_accepted(tmp_path: Path, settings: Settings, line: str) -> None:
    """All lines are looked at before the first one is submitted."""
    path = write_lines(tmp_path, '{"prompt": "a"}', line)
    with pytest.raises(ClusterError, match=r"some\.jsonl:2: "):
        submit_file(settings, Terminal(io.StringIO()), path, waits=False)
    assert not settings.spool_dir.exists()


def test_a_file_is_meant_from_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """launch.sh has changed the folder by then; where it was says CALLED_FROM."""
    write_lines(tmp_path, "no json")
    monkeypatch.setenv("CALLED_FROM", str(tmp_path))
    assert main(["submit", "some.jsonl", "--state-dir", str(tmp_path / "state")]) == 1
    assert f"{tmp_path / 'some.jsonl'}:1: " in capsys.readouterr().err
