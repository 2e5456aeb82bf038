"""How much longer a run takes, by how it went so far."""

from __future__ import annotations

from bdaudit.foundation.progress import Progress

__all__ = ["Remaining"]

_SKIP = 20.0  # times as fast as before: it was not done but found, in a cache or in kept results
_PRIOR_S = 20.0  # seconds for which a reckoning made beforehand counts as if it had come true
_LEAST_SHARE, _LEAST_S = 0.03, 5.0  # of a run that nobody reckoned, before a guess is made


class Remaining:
    """Watches the progress of a run.

    Where the units are seconds reckoned beforehand, the reckoning is corrected by how long they
    took. Otherwise a unit is taken to cost what one has cost so far. What was found and not done
    (another run had kept it) says nothing about speed and is left out.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._at = 0.0
        self._done = 0.0
        self._worked_s = 0.0
        self._worked = 0.0
        self._left = 0.0
        self._total = 0.0
        self._in_seconds = False

    def hear(self, event: Progress, now: float) -> None:
        """Take in an event, at `now` seconds by any steady clock."""
        if self._began is None or event.in_seconds != self._in_seconds:
            # Other units from here on: what was seen says nothing about them.
            self._began, self._at, self._done = now, now, event.done
            self._worked = self._worked_s = 0.0
            self._in_seconds = event.in_seconds
        passed, gained = now - self._at, event.done - self._done
        speed = self._worked / self._worked_s if self._worked_s > 0 else None
        usual = 1.0 if self._in_seconds else speed
        found = usual is not None and gained > _SKIP * usual * max(passed, 0.05)
        if gained > 0 and not found:
            self._worked += gained
        if not found:
            self._worked_s += passed
        self._at, self._done = now, event.done
        self._total, self._left = event.total, max(event.total - event.done, 0.0)

    def seconds(self, now: float) -> float | None:
        """Return how many seconds are left at `now`, `None` while nobody can tell."""
        if self._began is None or self._total <= 0:
            return None
        worked_s = self._worked_s + (now - self._at)
        if self._in_seconds:
            factor = (worked_s + _PRIOR_S) / (self._worked + _PRIOR_S)
        elif worked_s < _LEAST_S or self._worked < _LEAST_SHARE * self._total:
            return None
        else:
            factor = worked_s / self._worked
        return max(self._left * factor - (now - self._at), 0.0)
