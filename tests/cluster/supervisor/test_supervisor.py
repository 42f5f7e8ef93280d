"""The parts of cluster/ without a service: policy, heartbeats, log lines, proofs, command line, launch.sh."""

import asyncio
import io
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import ports
from cluster.commands import check
from cluster.commands.command import read_overrides
from cluster.commands.command_line import make_parser
from cluster.commands.demo import add_demo_settings
from cluster.commands.logs import find_logs, show_logs
from cluster.commands.requests.client import read_events
from cluster.commands.requests.smoke_test import find_idle_ranks
from cluster.commands.start import list_differences
from cluster.errors import ClusterError
from cluster.log_files import LineBuffer, ProcessLog
from cluster.processes import ProcessIdentity, identify
from cluster.supervisor.child import describe_exit
from cluster.supervisor.epoch_plan import EpochPlan
from cluster.supervisor.heartbeats import Rank
from cluster.supervisor.restart_policy import MAX_DELAY_S, RestartPolicy
from cluster.supervisor.running import make_environment
from cluster.terminal import Terminal, format_duration, make_bar
from cluster.threads import run_beside
from config import REPOSITORY_ROOT as ROOT
from config import SettingsError, load_settings
from config.rotating_file import RotatingFile


@given(st.lists(st.booleans(), max_size=40))
def test_the_breaker_opens_after_five_failures_in_a_row(outcomes: list[bool]) -> None:
    """Progress resets the count, delays only grow in between, and the first restart comes at once."""
    policy = RestartPolicy()
    in_a_row = 0
    for made_progress in outcomes:
        in_a_row = 1 if made_progress else in_a_row + 1
        delay_s = policy.after_failure(made_progress=made_progress)
        assert (delay_s is None) == (in_a_row >= 5)
        if delay_s is None:
            return
        assert (delay_s == 0.0) == (in_a_row == 1)
        assert delay_s <= MAX_DELAY_S


def test_kills_from_outside_restart_at_once_and_open_the_breaker_late() -> None:
    """A SIGKILL says little of who died of it; a machine without memory still comes to an end."""
    policy = RestartPolicy()
    delays = [policy.after_failure(made_progress=False, was_killed=True) for _ in range(50)]
    assert delays[:10] == [0.0] * 10
    assert set(delays[10:49]) == {1.0}
    assert delays[49] is None
    mixed = RestartPolicy()
    for was_killed in (True, True, False, False, False, False):
        assert mixed.after_failure(made_progress=False, was_killed=was_killed) is not None
    assert mixed.after_failure(made_progress=False) is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_what_worked_once_is_tried_for_ever(ends: list[tuple[bool, bool]]) -> None:
    """Refusals, failures and kills only make the delays longer, up to the longest, and mark it as stuck."""
    policy = RestartPolicy()
    for is_permanent, was_killed in ends:
        delay_s = policy.after_failure(
            made_progress=False, is_permanent=is_permanent, was_killed=was_killed, can_give_up=False
        )
        assert delay_s is not None
        assert 0.0 <= delay_s <= MAX_DELAY_S
        assert policy.is_open or (not is_permanent and policy.num_own_failures < 5)
    assert not policy.is_open or policy.num_failures < 8 or delay_s == MAX_DELAY_S


def test_a_refusal_opens_the_breaker_at_once() -> None:
    """What refuses its settings refuses them again."""
    assert RestartPolicy().after_failure(made_progress=True, is_permanent=True) is None


def make_epoch_plan() -> EpochPlan:
    return EpochPlan(1, ("127.0.0.1:1", "127.0.0.1:2"), "00", (), ROOT, {}, 45.0, 600.0, 10.0)


def heartbeat(phase: str, step: int = 0, progress: float = 0.0) -> str:
    return json.dumps({"event": "heartbeat", "rank": 1, "phase": phase, "step": step, "progress": progress})


def test_a_rank_is_stuck_by_the_limit_of_its_phase() -> None:
    """Connecting and loading have limits of their own, and from the first heartbeat on silence has one."""
    rank, plan = Rank(1, now=0.0), make_epoch_plan()
    assert rank.find_stall(plan, 44.0) is None
    assert rank.find_stall(plan, 46.0) == "rank 1 did not start within CONNECT_TIMEOUT=45 s"
    assert rank.take(heartbeat("loading"), now=10.0)
    assert rank.find_stall(plan, 21.0) == "rank 1 sent no heartbeat for 11 s (phase loading, step 0)"
    rank.take(heartbeat("loading"), now=615.0)
    assert rank.find_stall(plan, 616.0) == "rank 1 did not load its layers within LOAD_TIMEOUT=600 s"
    rank.take(heartbeat("warming"), now=616.0)
    rank.take(heartbeat("warming", progress=0.5), now=1217.0)
    assert rank.find_stall(plan, 1217.0) == "rank 1 did not run its first steps within LOAD_TIMEOUT=600 s"
    rank.take(heartbeat("ready"), now=1218.0)
    assert rank.find_stall(plan, 1222.0) is None


@pytest.mark.parametrize(
    "line", ["", "[]", "hello", '{"event": "heartbeat"}', '{"event": "heartbeat", "phase": "x", "step": "y"}']
)
def test_a_line_that_is_no_heartbeat_changes_nothing(line: str) -> None:
    """A stray print in a rank is reported and neither counts as a heartbeat nor ends the supervisor."""
    rank = Rank(0, now=0.0)
    assert not rank.take(line, now=5.0)
    assert rank.num_heartbeats == 0


def test_only_changes_of_phase_or_progress_are_published() -> None:
    """A ready ring's heartbeats write no files."""
    rank = Rank(0, now=0.0)
    assert rank.take(heartbeat("loading", progress=0.25), 1.0)
    assert not rank.take(heartbeat("loading", progress=0.251), 2.0)
    assert rank.take(heartbeat("ready", step=1), 3.0)
    assert not rank.take(heartbeat("ready", step=9), 4.0)


class Lines(LineBuffer):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def put_line(self, line: str) -> None:
        self.seen.append(line)


@given(st.lists(st.text(st.characters(blacklist_characters="\n", codec="utf-8")), max_size=8), st.data())
def test_lines_are_the_same_however_the_bytes_arrive(lines: Sequence[str], data: st.DataObject) -> None:
    """Reads that end in the middle of a line or of a character change nothing."""
    text = "".join(line + "\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    buffer = Lines()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        buffer.feed(text[start:end])
    buffer.finish()
    assert buffer.seen == list(lines)


def test_a_log_on_a_full_disk_loses_lines_and_nothing_else() -> None:
    """The last lines are kept for the reason of an exit even where the file cannot be written."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    log = ProcessLog(RotatingFile(Path("/dev/full")))
    log.feed(b"one\ntwo\n")
    assert list(log.last_lines) == ["one", "two"]
    assert log.last_words == "two"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "2026-11-29 19:20:24.855 ERROR rank 0: /there/config.json is missing",
            "/there/config.json is missing",
        ),
        ('{"time": "2026", "level": "ERROR", "process": "api", "message": "no: room"}', "no: room"),
        ("ModuleNotFoundError: No module named 'mlx'", "ModuleNotFoundError: No module named 'mlx'"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_the_reason_of_an_end_is_what_was_said_not_when(tmp_path: Path, line: str, words: str) -> None:
    """Time, level and process of the log's line are left out, in both formats."""
    log = ProcessLog(RotatingFile(tmp_path / "rank-0.log"))
    log.put_line(line)
    assert log.last_words == words


def test_an_identity_tells_a_process_from_another_with_its_pid() -> None:
    """Only pid and start time together are a process; a signal to anything else is not sent."""
    me = identify(os.getpid())
    assert me
    assert me.is_alive()
    other = ProcessIdentity(me.pid, me.start_time - 60)
    assert not other.is_alive()
    assert not other.send(signal.SIGKILL)
    assert other.wait(1.0)


def test_free_ring_ports_are_different_and_can_be_bound() -> None:
    """Ports for all ranks of an epoch, none of them taken."""
    with ports.listen("127.0.0.1", 0):
        found = ports.free_ring_ports("127.0.0.1", 8)
    assert len(set(found)) == 8
    assert all(ports.is_free("127.0.0.1", port) for port in found)


def test_an_address_of_another_machine_is_refused_for_the_ring() -> None:
    """The sentence names the setting."""
    with pytest.raises(ClusterError, match=r"RING_ADDRESS=192\.0\.2\.1"):
        ports.free_ring_ports("192.0.2.1", 1)


def test_ranks_share_the_cores_of_their_machine(tmp_path: Path) -> None:
    """A rank is told how many there are here, which a hostfile may say and not LOCAL_RANKS."""
    settings = load_settings({"LOCAL_RANKS": "16", "STATE_DIR": str(tmp_path)})
    assert make_environment(settings)["LOCAL_RANKS"] == "16"
    assert make_environment(settings, 3)["LOCAL_RANKS"] == "3"


def test_the_proof_needs_every_rank_and_every_layer() -> None:
    """A missing rank, one without frames or time, and a gap in the layers are each named."""
    first = {"rank": 1, "first_layer": 0, "num_layers": 15, "num_frames": 9, "busy_s": 0.4}
    last = {"rank": 0, "first_layer": 15, "num_layers": 15, "num_frames": 9, "busy_s": 0.5}
    assert find_idle_ranks([last, first], 2) == []
    assert find_idle_ranks([first], 2) == ["rank 0 took no part in this answer"]
    assert find_idle_ranks([last, {**first, "num_frames": 0}], 2) == ["rank 1 took no part in this answer"]
    assert find_idle_ranks([{**last, "busy_s": 0.0}, first], 2) == ["rank 0 took no part in this answer"]
    assert find_idle_ranks([{**last, "first_layer": 16}, first], 2) == [
        "not exactly one rank ran the layers from 15"
    ]
    assert find_idle_ranks([], 1) == ["rank 0 took no part in this answer"]


def test_events_are_read_with_comments_and_long_data() -> None:
    """Comments are skipped, an event without a name is a message, data may take several lines."""
    raw = b': hello\n\nevent: token\nid: 0\ndata: {"text":\ndata: "a"}\n\ndata: [1]\r\n\r\n: late\n\n'
    assert list(read_events(iter(io.BytesIO(raw).readline, b""))) == [
        ("token", {"text": "a"}),
        ("message", [1]),
    ]


def test_logs_are_merged_by_time_and_tracebacks_stay_together(tmp_path: Path) -> None:
    """Lines of several processes come in the order of their times, those without one below their own."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "rank-0.log").write_text(
        "2026-11-23 14:32:10.100 INFO rank 0: a\nTraceback\n2026-11-23 14:32:12.000 INFO rank 0: d\n"
    )
    (logs / "api.log").write_text(
        "2026-11-23 14:32:10.050 INFO api: 0\n2026-11-23 14:32:11.000 INFO api: c\nunfinished"
    )
    output = io.StringIO()
    settings = load_settings({"STATE_DIR": str(tmp_path)})
    assert show_logs(settings, Terminal(output), None, num_lines=4, follow=False) == 0
    assert [line[-1] for line in output.getvalue().splitlines()] == ["a", "k", "c", "d"]
    assert (
        find_logs(logs, "0") == find_logs(logs, "rank 0") == find_logs(logs, "rank") == [logs / "rank-0.log"]
    )
    with pytest.raises(ClusterError, match="allowed: api, rank-0"):
        find_logs(logs, "rank-7")


def test_flags_are_settings_and_the_named_one_wins() -> None:
    """--ranks is LOCAL_RANKS; --set takes any key and must be KEY=VALUE."""
    options = make_parser().parse_args(["start", "--ranks", "3", "--set", "LOG_LEVEL=DEBUG", "--port", "9"])
    assert read_overrides(options) == {"LOG_LEVEL": "DEBUG", "LOCAL_RANKS": "3", "API_PORT": "9"}
    with pytest.raises(SettingsError):
        read_overrides(make_parser().parse_args(["start", "--set", "LOG_LEVEL"]))


def test_demo_overrides_only_what_is_set_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag or a variable of the user's is kept."""
    monkeypatch.delenv("MODEL_REPO", raising=False)
    monkeypatch.setenv("LOCAL_RANKS", "3")
    added = add_demo_settings({"API_PORT": "8200"})
    assert added == {"API_PORT": "8200", "MODEL_REPO": "builtin:smollm2-135m"}


def test_settings_that_differ_are_named() -> None:
    """Nothing is said of a service that has not told its settings yet."""
    assert list_differences({"A": 1, "B": 2}, {"A": 1, "B": 3}) == ["B is 2 there, 3 here"]
    assert list_differences(None, {"A": 1}) == []


def test_exits_durations_and_bars_read_as_words() -> None:
    """What people see."""
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(3) == "exited with code 3"
    assert [format_duration(s) for s in (4.24, 192, 18_120, 273_600)] == [
        "4.2 s",
        "3 min 12 s",
        "5 h 2 min",
        "3 d 4 h",
    ]
    assert make_bar(0.5) == "████████░░░░░░░░  50 %"


def test_a_slow_answer_keeps_no_program_from_ending() -> None:
    """A look-up beside the loop gives its result or its error; one that hangs is left alone."""
    never = threading.Event()

    async def look_up() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await run_beside(never.wait)
        with pytest.raises(ValueError, match="invalid literal"):
            await run_beside(int, "x")
        return await run_beside("{}-{}".format, 1, 2)

    began = time.monotonic()
    assert asyncio.run(look_up()) == "1-2"
    assert time.monotonic() - began < 5.0
    never.set()


def test_the_report_of_check_all_holds_commit_counts_and_verdicts(tmp_path: Path) -> None:
    """What docs/check-all.txt is made of."""
    counts = tmp_path / "tests.xml"
    counts.write_text('<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"/></testsuites>')
    outcomes = [
        check.Outcome(check.Step("mypy", ()), 0, 3.0),
        check.Outcome(check.Step("tests", (), counts), 1, 61.0),
        check.Outcome(check.Step("long tests", (), tmp_path / "none.xml"), check.NO_TESTS, 1.0),
    ]
    report = check.make_report(outcomes)
    assert "commit" in report
    assert "5 passed, 2 failed, 2 skipped" in report
    assert [outcome.is_good for outcome in outcomes] == [True, False, True]


def test_check_runs_files_side_by_side_and_long_tests_one_by_one(tmp_path: Path) -> None:
    """`--fast` and `--all` differ in what pytest selects, and only that."""
    for flags, selected in (
        ({"with_slow": False}, ["not slow and not long"]),
        ({}, ["not long"]),
        ({"with_long": True}, ["not long", "long"]),
    ):
        tests = [step for step in check.make_steps(tmp_path, **flags) if step.counts]
        assert [step.command[step.command.index("-m", 3) + 1] for step in tests] == selected
        assert ["loadfile" in step.command for step in tests] == [True, False][: len(tests)]
    assert [check.count_workers(cores) for cores in (1, 2, 16)] == [2, 3, 8]


@pytest.mark.parametrize("script", ["launch.sh", ".ci/run"])
def test_scripts_are_executable_bash(script: str) -> None:
    """A clone can run them as they are."""
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0
