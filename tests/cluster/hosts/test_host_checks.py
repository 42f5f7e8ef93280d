"""What the doctor makes of facts: pure, facts in, findings out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from cluster import ports
from cluster.commands.doctor import this_machine as doctor_here
from cluster.errors import ClusterError
from cluster.findings import Finding, refuse_failed, show_findings
from cluster.hosts import host_checks
from cluster.hosts.hosts import Host
from cluster.hosts.links import Link, list_links
from cluster.hosts.remote_scripts.environment import find_damaged, find_trouble
from cluster.hosts.worker_setup import Environment
from cluster.supervisor.service import Service
from cluster.terminal import Terminal
from config import REPOSITORY_ROOT
from config.live import load_for_looking
from tests.cluster.hosts.pretended_hosts import FACTS, GB, MAC1, MAC2, WIFI
from tests.services.cluster_service import find_free_port

GOOD, MISSING = Environment("good"), Environment("missing")


def find(findings: list[Finding], check: str) -> Finding:
    (found,) = (finding for finding in findings if finding.check == check)
    return found


@pytest.mark.parametrize(
    ("told", "text", "fix"),
    [
        ({"machine": "x86_64"}, "runs under Rosetta; MLX needs one for arm64", "WORKER_PYTHON"),
        ({"machine": "x86_64", "chip": "VirtualApple @ 2.50GHz"}, "under Rosetta", "brew install python"),
        ({"machine": "x86_64", "chip": "Intel(R) Core(TM) i7"}, "Intel Mac", "leave it out of WORKER_HOSTS"),
        ({"release": "13.6.9"}, "macOS 13.6.9 is too old, MLX needs 14 or newer", "Software Update"),
    ],
)
def test_a_mac_that_cannot_run_mlx_is_named_with_what_helps(
    told: dict[str, str], text: str, fix: str
) -> None:
    """An Intel Mac, a Python under Rosetta, an old macOS; others, and other systems, have no trouble."""
    finding = host_checks.check_python(replace(FACTS, **told))  # type: ignore[arg-type]
    assert (finding.level, text in finding.text, fix in finding.fix) == ("failed", True, True)
    assert FACTS.mac_trouble is replace(FACTS, release="14.0").mac_trouble is None
    assert replace(FACTS, system="Linux", machine="x86_64", release="6.1").mac_trouble is None


def test_a_host_in_order_has_no_other_finding_than_ok() -> None:
    """The interface of the ring address is named with its kind."""
    findings = host_checks.check_host(FACTS, GOOD)
    assert {finding.level for finding in findings} == {"ok"}
    assert "192.168.5.2 (bridge0, thunderbolt)" in find(findings, "ring").text


@pytest.mark.parametrize(
    ("change", "check", "level", "text", "fix"),
    [
        ({"python_version": "3.9.6"}, "python", "failed", "3.11 or newer", "on mac2: brew install python"),
        ({"disk_free_bytes": 0}, "disk", "ok", "0 MB free", ""),
        ({"rsync": None}, "rsync", "failed", "not installed", "on mac2: sudo apt-get install rsync"),
        (
            {"port_error": "no such address"},
            "ring",
            "failed",
            "it has 192.168.5.2 (bridge0, thunderbolt), 192.168.1.23 (en1, wifi)",
            "in place of anna@mac2=192.168.5.2",
        ),
        ({"clock_offset_s": -90.0}, "clock", "note", "90 s behind", "on mac2: sudo sntp"),
        ({"firewall": True}, "firewall", "note", "firewall is on", "System Settings"),
    ],
)
def test_each_trouble_is_a_sentence_with_what_fixes_it(
    change: dict[str, object], check: str, level: str, text: str, fix: str
) -> None:
    """One fact off, one finding; a host where nothing is to be written needs no disk."""
    facts = replace(FACTS, **change)  # type: ignore[arg-type]
    finding = find(host_checks.check_host(facts, GOOD), check)
    assert finding.level == level
    assert text in finding.text and fix in finding.fix


@pytest.mark.parametrize(
    ("environment", "change", "check", "level", "text"),
    [
        (Environment("good"), {"can_make_environments": False}, "python", "ok", "Python 3.13.1"),
        (MISSING, {"can_make_environments": False}, "python", "failed", "has no venv module"),
        (MISSING, {}, "packages", "note", "no environment in /opt/mlx-ring/venv yet"),
        (MISSING, {"disk_free_bytes": GB}, "disk", "failed", "3.0 GB are needed"),
        (
            Environment("broken", "mlx is 0.3 there"),
            {},
            "packages",
            "note",
            "makes a new one (mlx is 0.3 there)",
        ),
        (
            Environment("other", "other requirements"),
            {},
            "packages",
            "note",
            "updates it (other requirements)",
        ),
    ],
)
def test_what_is_wrong_with_an_environment_is_for_start_to_mend(
    environment: Environment, change: dict[str, object], check: str, level: str, text: str
) -> None:
    """It keeps nothing from starting; only what it takes to make it anew must be there."""
    facts = replace(FACTS, **change)  # type: ignore[arg-type]
    finding = find(host_checks.check_host(facts, environment), check)
    assert (finding.level, text in finding.text) == (level, True), finding


def test_start_refuses_with_what_the_doctor_found() -> None:
    """One line for each finding that failed: host, what is wrong, what fixes it."""
    found = host_checks.check_host(replace(FACTS, rsync=None, python_version="3.9.6", firewall=True), GOOD)
    with pytest.raises(ClusterError) as caught:
        refuse_failed(found)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["mac2", "mac2"]
    assert lines[0].endswith("3.11 or newer is needed: on mac2: brew install python")
    refuse_failed(host_checks.check_host(FACTS, GOOD))


def test_a_package_that_is_there_only_in_part_is_told(tmp_path: Path) -> None:
    """Compared with what pip has noted: a file that is missing, or was cut by a full disk."""
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    (info / "RECORD").write_text("thing/__init__.py,sha256=x,3\nthing/__init__.pyc,,\n")
    (thing,) = metadata.distributions(path=[str(tmp_path)])
    assert find_damaged(thing) == "thing/__init__.py is missing"
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "__init__.py").write_text("1\n")
    assert find_damaged(thing) == "thing/__init__.py has 2 bytes of 3"
    (tmp_path / "thing" / "__init__.py").write_text("12\n")
    assert find_damaged(thing) is None
    assert find_trouble({"mlx": "0.1"}) == f"mlx is {metadata.version('mlx')} there and 0.1 here"
    assert find_trouble({"no-such-package": "1"}) == "no-such-package is not installed"


def test_wifi_is_pointed_out_with_the_cable_that_is_there() -> None:
    """The ring address is on Wi-Fi while the Thunderbolt bridge has an address."""
    facts = replace(FACTS, host=replace(MAC2, address="192.168.1.23"))
    finding = find(host_checks.check_host(facts, GOOD), "cable")
    assert finding.level == "note" and "bridge0 (thunderbolt) has 192.168.5.2" in finding.text
    assert finding.fix == "write anna@mac2=192.168.5.2 in WORKER_HOSTS"
    alone = replace(facts, interfaces=(WIFI,))
    assert "docs/cluster.md" in find(host_checks.check_host(alone, GOOD), "cable").fix


def test_memory_that_is_not_told_is_no_failure() -> None:
    """The plan says whether it is enough."""
    assert host_checks.describe_memory(replace(FACTS, free_memory_bytes=None)).level == "note"
    assert "40.0 GB free of 64.0 GB (Apple M4 Max)" in host_checks.describe_memory(FACTS).text


def test_links_go_from_each_host_to_the_next_and_never_to_itself() -> None:
    """Two hosts have two links, three have three, one has none; this machine twice is one place."""
    mac3 = Host("mac3", "mac3", "192.168.6.3", 2)
    assert list_links([MAC1]) == []
    assert list_links([MAC1, MAC2]) == [(MAC1, MAC2), (MAC2, MAC1)]
    assert list_links([MAC1, MAC2, mac3]) == [(MAC1, MAC2), (MAC2, mac3), (mac3, MAC1)]
    again = replace(MAC1, num_ranks=3)
    assert list_links([MAC1, again]) == []
    assert list_links([MAC1, again, MAC2]) == [(again, MAC2), (MAC2, MAC1)]


@pytest.mark.parametrize(
    ("link", "level", "text"),
    [
        (
            Link(MAC1, MAC2, 300.0, 9000.0, 8000.0, source_address="192.168.1.9"),
            "note",
            "it leaves by 192.168.1.9, not by the ring address 192.168.5.1",
        ),
        (Link(MAC1, MAC2, 300.0, 9000.0, 8000.0), "ok", "9000 Mbit/s there, 8000 back, 0.30 ms"),
        (Link(MAC1, MAC2, 300.0, 300.0, 8000.0), "note", "slower than a gigabit cable"),
        (Link(MAC1, MAC2, 9000.0, 9000.0, 8000.0), "note", "slower than a gigabit cable"),
        (Link(MAC1, MAC2, trouble="timed out"), "failed", "cannot reach mac2 at 192.168.5.2: timed out"),
    ],
)
def test_a_link_is_judged_by_speed_and_latency(link: Link, level: str, text: str) -> None:
    """Slow is a note, unreachable a failure; macOS asks for local network access and has its own firewall."""
    finding = host_checks.check_link(link, {"mac2": "Linux"})
    assert finding.level == level and text in finding.text
    assert bool(finding.fix) == (level != "ok")
    if level == "failed":
        assert "TCP ports" in finding.fix
        assert "Local Network" in host_checks.check_link(link, {"mac2": "Darwin"}).fix


def test_what_is_private_and_open_to_others_is_told_and_closed(tmp_path: Path) -> None:
    """Prompts, logs and the secret; STATE_DIR itself may be looked into, but not written."""
    settings = load_for_looking({"STATE_DIR": str(tmp_path / "state")}, tmp_path)
    settings.log_dir.mkdir(parents=True)
    settings.log_dir.chmod(0o755)
    settings.state_dir.chmod(0o775)
    settings.ring_secret_path.write_text("x" * 32, encoding="ascii")
    settings.ring_secret_path.chmod(0o640)
    failed = [finding for finding in doctor_here.check_private_files(settings) if finding.level == "failed"]
    assert [finding.text.split()[0] for finding in failed] == [
        str(path) for path in (settings.state_dir, settings.log_dir, settings.ring_secret_path)
    ]
    assert len(doctor_here.make_private(settings)) == 3
    assert [finding.level for finding in doctor_here.check_private_files(settings)] == ["ok"]
    assert settings.ring_secret_path.stat().st_mode & 0o777 == 0o600
    assert doctor_here.make_private(settings) == []


def test_a_state_dir_of_somebody_else_is_failed_only_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that belongs to another user may be shared with us on purpose."""
    assert doctor_here.check_state_dir(tmp_path).level == "ok"
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert doctor_here.check_state_dir(tmp_path).level == "note"
    monkeypatch.setattr("os.access", lambda *_: False)
    refused = doctor_here.check_state_dir(tmp_path)
    assert refused.level == "failed" and refused.fix.startswith("sudo chown")
    monkeypatch.undo()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert doctor_here.check_state_dir(tmp_path).fix == f"chmod u+rwx {tmp_path}"


def test_a_model_folder_without_its_weights_is_told(tmp_path: Path) -> None:
    """A folder that is named but is no model fails; what start fetches is only noted."""
    (tmp_path / "model").mkdir()
    settings = load_for_looking({"MODEL_REPO": str(tmp_path / "model")}, tmp_path)
    assert doctor_here.check_model(settings).level == "failed"
    built_in = {"MODEL_REPO": "builtin:smollm2-135m", "STATE_DIR": str(tmp_path / "state")}
    assert doctor_here.check_model(load_for_looking(built_in, tmp_path)).level == "note"


def test_an_api_port_that_somebody_has_is_told_with_who(tmp_path: Path) -> None:
    """Free, taken by a stranger."""
    port = find_free_port()
    settings = load_for_looking({"API_PORT": str(port)}, tmp_path)
    nobody = Service({}, {}, None)
    assert doctor_here.check_api_port(settings, nobody).level == "ok"
    with ports.listen("127.0.0.1", port):
        finding = doctor_here.check_api_port(settings, nobody)
    assert finding.level == "failed" and "is taken" in finding.text and "API_PORT" in finding.fix


def test_a_blas_that_is_not_there_fails_where_it_was_asked_for() -> None:
    """`off` is no finding; a bad choice ends with its reason."""
    assert doctor_here.check_blas("off") == []
    (finding,) = doctor_here.check_blas("auto")
    assert finding.level in ("ok", "note")


def test_products_that_cannot_be_packed_say_why_and_what_fixes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note where the BLAS takes its place; a failure where it was asked for, or ends its process."""
    assert doctor_here.check_products("blas") == []
    (finding,) = doctor_here.check_products("auto")
    assert finding.level in ("ok", "note")
    absent = "import sys\nsys.modules['llvmlite.binding'] = None\n" + doctor_here.KERNELS_TRIAL
    monkeypatch.setattr(doctor_here, "KERNELS_TRIAL", absent)
    for choice, level in (("auto", "note"), ("kernels", "failed")):
        (finding,) = doctor_here.check_products(choice)
        assert (finding.level, "llvmlite" in finding.text) == (level, True)
        assert "pip install llvmlite" in finding.fix
    monkeypatch.setattr(doctor_here, "KERNELS_TRIAL", "import os; os.kill(os.getpid(), 4)")
    (finding,) = doctor_here.check_products("auto")
    assert finding.level == "failed" and "CPU_PRODUCTS=blas" in finding.fix


def test_findings_are_shown_host_by_host_with_the_mend_below() -> None:
    """Plain lines where there is no terminal."""
    output = io.StringIO()
    findings = [Finding("mac2", "ssh", "failed", "no", "do"), Finding("mac1", "api", "ok", "yes")]
    show_findings([*findings, Finding("mac2", "disk", "note", "low")], Terminal(output))
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert lines == [
        ["mac2"],
        ["failed", "ssh", "no"],
        ["fix:", "do"],
        ["note", "disk", "low"],
        ["mac1"],
        ["ok", "api", "yes"],
    ]


@pytest.mark.slow
def test_one_machine_is_looked_at_without_ssh(tmp_path: Path) -> None:
    """No WORKER_HOSTS: this machine's findings, no links, exit code 0; nothing is made."""
    flags = ["--model", "builtin:smollm2-135m", "--port", str(find_free_port())]
    words = [
        sys.executable,
        "-m",
        "cluster",
        "doctor",
        "--json",
        *flags,
        "--state-dir",
        str(tmp_path / "state"),
    ]
    ended = subprocess.run(words, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    said = json.loads(ended.stdout)
    assert ended.returncode == 0 and said["ok"] and said["links"] == [], ended.stdout
    checks = {finding["check"] for finding in said["findings"]}
    assert {"packages", "python", "disk", "memory", "api", "state", "model", "plan", "ring"} <= checks
    assert {finding["host"] for finding in said["findings"]} == {"localhost"}
    assert not (tmp_path / "state").exists()
