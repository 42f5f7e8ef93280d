"""When to start a failed process again: at once, then after growing delays. Pure: no clock, no processes."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FAILURES = 5
MAX_KILLS = 50
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 15.0
NUM_KILLS_WITHOUT_DELAY = 10
DELAY_AFTER_KILLS_S = 1.0


@dataclass
class RestartPolicy:
    """Counts failures in a row without progress; the breaker opens at MAX_FAILURES, or at a refusal.

    An open breaker stops the tries of what never worked. What worked once is tried further, with growing
    delays: the cause may pass. A SIGKILL from outside says little about the process: such ends have a higher
    limit of their own, for a machine that is out of memory. A host that does not answer is retried without
    limit and never counts as a failure.
    """

    first_delay_s: float = FIRST_DELAY_S
    num_failures: int = 0
    num_own_failures: int = 0
    num_away: int = 0
    is_open: bool = False  # another try alone will hardly help

    def after_away(self) -> float:
        """Seconds to wait before trying a host again that did not answer."""
        self.num_away += 1
        self.is_open = False
        return min(MAX_DELAY_S, self.first_delay_s * 2.0 ** min(self.num_away - 1, 16))

    def after_failure(
        self,
        *,
        made_progress: bool,
        is_permanent: bool = False,
        was_killed: bool = False,
        can_give_up: bool = True,
    ) -> float | None:
        """Seconds to wait before the next start; None if the breaker is open and `can_give_up`."""
        self.num_away = 0
        if made_progress:
            self.num_failures = self.num_own_failures = 0
        self.num_failures += 1
        self.num_own_failures += not was_killed
        self.is_open = is_permanent or self.num_own_failures >= MAX_FAILURES or self.num_failures >= MAX_KILLS
        if self.is_open and can_give_up:
            return None
        if self.num_failures == 1:
            return 0.0
        if not self.num_own_failures and not self.is_open:
            return 0.0 if self.num_failures <= NUM_KILLS_WITHOUT_DELAY else DELAY_AFTER_KILLS_S
        return min(MAX_DELAY_S, self.first_delay_s * 2.0 ** min(self.num_failures - 2, 16))
