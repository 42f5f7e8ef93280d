"""docs/cluster.md as it is read: its commands, in its order, on two hosts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cluster.on_hosts.namespaces import Hosts
from tests.cluster.on_hosts.ring_on_hosts import make_ring

pytestmark = pytest.mark.long
PAGE = Path(__file__).resolve().parent.parent.parent.parent / "docs" / "cluster.md"
STEPS = ("### 5. Look first", "### 6. Start")


def read_commands() -> list[list[str]]:
    """Every ./launch.sh line in the shell blocks of the steps."""
    text = PAGE.read_text(encoding="utf-8")
    lines: list[str] = []
    for step in STEPS:
        assert step in text
        part = re.split(r"^##", text.partition(step)[2], maxsplit=1, flags=re.MULTILINE)[0]
        for block in re.findall(r"^```sh\n(.*?)^```", part, re.MULTILINE | re.DOTALL):
            lines += [line for line in block.splitlines() if line.startswith("./launch.sh ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_commands_of_the_page_lead_to_the_first_token(hosts: Hosts) -> None:
    """With the other host in .env, each command succeeds; both ranks take part; stop leaves nothing."""
    commands = read_commands()
    assert [words[0] for words in commands] == ["doctor", "plan", "start", "start", "test"]
    ring = make_ring(hosts)
    del ring.settings["WORKER_HOSTS"]
    (ring.root / ".env").write_text("WORKER_HOSTS=root@mac2=10.77.0.2\n", encoding="ascii")
    said = {" ".join(words): ring.check(*words) for words in commands}
    assert "mac2" in said["doctor"] and "ready for ./launch.sh start" in said["doctor"]
    assert "mac2" in said["plan"]
    assert "ready" in said["start"]
    assert "Every rank took part (2 of 2)" in said["test"]
    again = ring.check("doctor")
    assert "served by this service (ready)" in again and "files of its layers" in again
    assert ring.check("status").startswith("ready")
    ring.check("stop")
    assert ring.find_leftovers() == {}
