"""What the doctor says: one finding is one sentence about one host and, where it is bad, the command that
mends it.

    ok        as it should be
    note      will be done by `start`, or could be better; the service runs
    failed    the service would not start or would not be what was meant

Knows nothing of how anything is found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.errors import ClusterError
from cluster.terminal import Terminal

Level = Literal["ok", "note", "failed"]
_COLORS = {"ok": "green", "note": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `check` is its stable name."""

    host: str
    check: str
    level: Level
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.host}: {self.text}{f': {self.mend}' if self.mend else ''}"

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "host": self.host,
            "check": self.check,
            "level": self.level,
            "text": self.text,
            "mend": self.mend or None,
        }


def show_findings(findings: Sequence[Finding], terminal: Terminal) -> None:
    """Print them host by host, in the order in which they were found."""
    for host in dict.fromkeys(finding.host for finding in findings):
        terminal.line(terminal.colored(host, "bold"))
        for finding in findings:
            if finding.host == host:
                level = terminal.colored(f"{finding.level:<6}", _COLORS[finding.level])
                terminal.line(f"  {level} {finding.check:<12} {finding.text}")
                if finding.mend:
                    terminal.line(f"  {'':<6} {'':<12} {terminal.colored(f'mend: {finding.mend}', 'bold')}")


def count_failed(findings: Sequence[Finding]) -> int:
    """How many are failed."""
    return sum(finding.level == "failed" for finding in findings)


def refuse_failed(findings: Sequence[Finding]) -> None:
    """Say what keeps a start from being of use, in the doctor's words.

    Raises:
        ClusterError: a sentence for each finding that failed, with what mends it.
    """
    if failed := [finding for finding in findings if finding.level == "failed"]:
        raise ClusterError("\n".join(str(finding) for finding in failed))
