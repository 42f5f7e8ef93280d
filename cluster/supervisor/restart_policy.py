"""When to start again what failed: at once the first time, then ever later; what never worked, not for ever.

Pure: no clock, no processes.
"""

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
    """Counts failures in a row without progress; the breaker opens at `max_failures`, or at a refusal.

    An open breaker ends what never worked. What worked once is tried again all the same, with growing delays:
    its trouble may pass. A SIGKILL that somebody else sent says little of the process that died of it: such
    ends have a limit of their own, for a machine that is out of memory. A host that is away is nobody's
    failure: it is tried for as long as it takes, and counts for nothing.
    """

    max_failures: int = MAX_FAILURES
    first_delay_s: float = FIRST_DELAY_S
    num_failures: int = 0
    num_own_failures: int = 0
    num_away: int = 0
    is_open: bool = False  # another try alone hardly helps

    def after_away(self) -> float:
        """Seconds to wait before a host is tried again that did not answer."""
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
        """Seconds to wait before the next start; None where the breaker is open and it can give up."""
        self.num_away = 0
        if made_progress:
            self.num_failures = self.num_own_failures = 0
        self.num_failures += 1
        self.num_own_failures += not was_killed
        self.is_open = (
            is_permanent or self.num_own_failures >= self.max_failures or self.num_failures >= MAX_KILLS
        )
        if self.is_open and can_give_up:
            return None
        if self.num_failures == 1:
            return 0.0
        if not self.num_own_failures and not self.is_open:
            return 0.0 if self.num_failures <= NUM_KILLS_WITHOUT_DELAY else DELAY_AFTER_KILLS_S
        return min(MAX_DELAY_S, self.first_delay_s * 2.0 ** min(self.num_failures - 2, 16))
