"""Which request gets which fault: drawn from a seed, one sequence for each kind of request.

So the fifth create of a run meets the same fault whatever else was asked meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import Enum


class Kind(str, Enum):
    """What a request is, as far as faults differ by it."""

    CREATE = "create"
    CHANGE = "change"  # patch and delete
    READ = "read"
    PAGE = "page"  # a further page of a list
    WATCH = "watch"


class Fault(str, Enum):
    """What becomes of a request or of its answer."""

    DROPPED = "dropped before it is passed on"
    LOST = "passed on, and its answer is lost"
    LATE = "passed on late, also where nobody waits any more"
    SLOW = "answered late"
    HALVED = "answered by half"
    TRIMMED = "answered by half, as if that were all"
    BUSY = "429 with Retry-After"
    BROKEN = "500"
    AWAY = "503"
    EXPIRED = "410"
    CUT = "watch cut in the middle of a line"
    ENDED = "watch ended in the middle of a line, as if that were its end"


_ANY = (Fault.DROPPED, Fault.LOST, Fault.SLOW, Fault.HALVED, Fault.TRIMMED, Fault.BUSY, Fault.BROKEN, Fault.AWAY)

FAULTS: Mapping[Kind, tuple[Fault, ...]] = {
    Kind.CREATE: (*_ANY, Fault.LATE),
    Kind.CHANGE: (*_ANY, Fault.LATE),
    Kind.READ: _ANY,
    Kind.PAGE: (*_ANY, Fault.EXPIRED),
    Kind.WATCH: (Fault.DROPPED, Fault.SLOW, Fault.BUSY, Fault.AWAY, Fault.EXPIRED, Fault.CUT, Fault.ENDED),
}

SHARE: Mapping[Kind, float] = {
    Kind.CREATE: 0.4,
    Kind.CHANGE: 0.3,
    Kind.READ: 0.15,
    Kind.PAGE: 0.15,
    Kind.WATCH: 0.9,
}
"""How many of all requests meet a fault."""

_LONGEST_WATCH = 12.0
"""Seconds until one breaks that is to break."""

_LONGEST_DELAY = 5.0


class Plan:
    """Draws faults.

    :param seed: of everything that is drawn.
    :param share: how many requests of each kind meet a fault, 0 to 1.
    """

    def __init__(self, seed: int, share: Mapping[Kind, float] = SHARE) -> None:
        self._share = share
        self._randoms = {kind: random.Random(f"{seed} {kind.value}") for kind in Kind}

    def draw(self, kind: Kind) -> tuple[Fault | None, float]:
        """Return the fault of the next request of a kind, if any, and after how many seconds it strikes.

        :param kind: what the request is.
        """
        random = self._randoms[kind]
        # All are drawn each time, so that a share that is changed shifts nothing.
        strikes, fault, part = random.random() < self._share[kind], random.choice(FAULTS[kind]), random.random()
        return fault if strikes else None, part * (_LONGEST_WATCH if kind is Kind.WATCH else _LONGEST_DELAY)
