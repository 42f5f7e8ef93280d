"""When to start again what failed: at once the first time, then ever later, and in the end not at all.

Pure: no clock, no processes.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FAILURES = 5
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 15.0


@dataclass
class RestartPolicy:
    """Counts failures in a row without progress; the breaker opens at `max_failures`, or at a refusal."""

    max_failures: int = MAX_FAILURES
    first_delay_s: float = FIRST_DELAY_S
    num_failures: int = 0

    def after_failure(self, *, made_progress: bool, is_permanent: bool = False) -> float | None:
        """Seconds to wait before the next start; None when the breaker opens."""
        self.num_failures = 1 if made_progress else self.num_failures + 1
        if is_permanent or self.num_failures >= self.max_failures:
            return None
        if self.num_failures == 1:
            return 0.0
        return min(MAX_DELAY_S, self.first_delay_s * 2.0 ** (self.num_failures - 2))
