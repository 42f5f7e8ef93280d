"""`submit FILE.jsonl` makes a batch, which the front door answers; `batches` lists it and cancels it."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.commands.command_line import main
from cluster.commands.requests.batches import cancel_batch, list_batches
from cluster.commands.requests.submit import submit_file
from cluster.errors import ClusterError
from cluster.terminal import Terminal
from config import Settings
from tests.services.frontdoor_service import Service, running_service

SIMPLE = '{"prompt": "a", "max_tokens": 3}'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as made:
        yield made


def chat_line(custom_id: str, **body: Any) -> str:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def write_lines(folder: Path, *lines: str) -> Path:
    path = folder / "some.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def read_output(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_every_line_gets_an_id_and_with_wait_an_answer(tmp_path: Path, service: Service) -> None:
    """Equal lines are two requests; empty lines are none; the answers carry the ids that were printed."""
    path = write_lines(tmp_path, SIMPLE, "", SIMPLE)
    output = io.StringIO()
    assert submit_file(service.settings, Terminal(output), path, waits=True) == 0
    printed = read_output(output)
    ids = [line["id"] for line in printed if "number" in line]
    assert len(set(ids)) == 2
    answers = [line for line in printed if "text" in line]
    assert sorted(str(line["id"]) for line in answers) == sorted(map(str, ids))
    assert {line["finish_reason"] for line in answers} == {"length"}
    assert len((tmp_path / "some.output.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "some.errors.jsonl").exists()


def test_lines_of_a_batch_are_answered_in_its_form(tmp_path: Path, service: Service) -> None:
    """A line that its route refuses is an error of its own, and the exit code shows it."""
    path = write_lines(tmp_path, chat_line("x"), chat_line("y", temperature=99))
    output = io.StringIO()
    assert submit_file(service.settings, Terminal(output), path, waits=True) == 1
    answers = {line["custom_id"]: line["response"] for line in read_output(output) if "custom_id" in line}
    assert answers["x"]["body"]["choices"][0]["message"]["content"] == "Grüße, "
    assert answers["y"]["status_code"] == 400
    assert json.loads((tmp_path / "some.errors.jsonl").read_text())["custom_id"] == "y"


def test_without_a_service_the_batch_waits(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next start answers it, as the command says; until then it can be seen and cancelled."""
    output = io.StringIO()
    assert submit_file(settings, Terminal(output), write_lines(tmp_path, SIMPLE), waits=False) == 0
    assert "./launch.sh start" in capsys.readouterr().err
    batch_id = read_output(output)[0]["batch"]
    listed = io.StringIO()
    assert list_batches(settings, Terminal(listed), is_json=True) == 0
    assert [(each["id"], each["state"]) for each in json.loads(listed.getvalue())] == [
        (batch_id, "validating")
    ]
    assert cancel_batch(settings, Terminal(io.StringIO()), batch_id) == 0
    listed = io.StringIO()
    list_batches(settings, Terminal(listed), is_json=False)
    assert f"{batch_id}  cancelling" in listed.getvalue()


def test_batches_says_what_it_does_not_find(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a spool there are no batches, and none is made; a wrong id is exit code 1."""
    folder = ["--state-dir", str(tmp_path / "state")]
    assert main(["batches", *folder]) == 0
    assert "no batches" in capsys.readouterr().out
    assert main(["batches", "cancel", f"batch_{'0' * 32}", *folder]) == 1
    assert main(["batches", "cancel", *folder]) == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "line", ['{"prompt": 7}', "no json", '{"max_tokens": 3}', '{"prompt": "a", "n": 2}', chat_line("x")]
)
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
