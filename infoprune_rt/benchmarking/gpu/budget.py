"""Time that may be spent, and what is left out where it does not last."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from infoprune_rt.errors import InfopruneError

AGAIN = 2.0  # seconds after which time that is over is said once more: compilers swallow exceptions


class Budget:
    """So many seconds from now. clock: seconds that only rise."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        """Seconds, never below 0."""
        return max(0.0, self._end - self._clock())


class Pace:
    """Whether there is time for one more of a kind: as long as the longest so far, before the first one ``first``."""

    def __init__(self, budget: Budget, first: float) -> None:
        self._budget, self._longest, self._any = budget, first, False

    def allows(self) -> bool:
        """Whether the next one fits in the time left."""
        return self._budget.left >= self._longest

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around each of them."""
        before = self._budget.left
        yield
        taken = before - self._budget.left
        self._longest = max(self._longest, taken) if self._any else taken
        self._any = True


@contextmanager
def ended_after(seconds: float, what: str) -> Iterator[None]:
    """Raise InfopruneError in the midst of the body when its time is over; for the main thread of a Unix process.

    A body that swallows it is told again, until it ends.
    """
    left = False

    def stop(*_: Any) -> None:
        if not left:
            raise InfopruneError(f"{what} did not end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        left = True  # first: an alarm on its way must not keep the timer from being cancelled
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
