"""The doctor's findings: each is one sentence about one host and, if something is wrong, the fix.

    ok        as it should be
    note      `start` does it, or it could be better; the service runs
    failed    the service would not start, or would not work as meant

Knows nothing of how a finding is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.errors import ClusterError
from cluster.terminal import Terminal

Level = Literal["ok", "note", "failed"]
_COLORS = {"ok": "green", "note": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Finding:
    """The result of one check; `check` is its stable name."""

    host: str
    check: str
    level: Level
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.host}: {self.text}{f': {self.fix}' if self.fix else ''}"

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        values = asdict(self)
        return values | {"mend": values.pop("fix") or None}  # the key that programs read


def show_findings(findings: Sequence[Finding], terminal: Terminal) -> None:
    """Print findings host by host, in their order."""
    for host in dict.fromkeys(finding.host for finding in findings):
        terminal.line(terminal.colored(host, "bold"))
        for finding in findings:
            if finding.host == host:
                level = terminal.colored(f"{finding.level:<6}", _COLORS[finding.level])
                terminal.line(f"  {level} {finding.check:<12} {finding.text}")
                if finding.fix:
                    terminal.line(f"  {'':<6} {'':<12} {terminal.colored(f'fix: {finding.fix}', 'bold')}")


def count_failed(findings: Sequence[Finding]) -> int:
    """The number of failed findings."""
    return sum(finding.level == "failed" for finding in findings)


def refuse_failed(findings: Sequence[Finding]) -> None:
    """Refuse a start that could not work.

    Raises:
        ClusterError: a sentence for each failed finding, with its fix.
    """
    if failed := [finding for finding in findings if finding.level == "failed"]:
        raise ClusterError("\n".join(str(finding) for finding in failed))
