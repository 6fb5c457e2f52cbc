"""How far a training is: figures for people and for programs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from airflow_provider_finetune.contract.durations import duration
from airflow_provider_finetune.runner.reporting.metrics import Point

_WINDOW = 50


class _Observation(NamedTuple):
    now: float
    step: int
    tokens: int | None


class Progress:
    """Turns points, and the moments at which they were seen, into rates and an estimate of the time left.

    :param epochs: planned passes over the data, shown beside the epoch
    """

    def __init__(self, epochs: float | None = None) -> None:
        self._epochs = epochs
        self._point: Point | None = None
        self._observations: deque[_Observation] = deque(maxlen=_WINDOW)
        self._first: _Observation | None = None

    def update(self, points: Iterable[Point], now: float) -> None:
        """Takes what one look at the metrics file gave.

        :param points: the new points, possibly none
        :param now: a monotonic clock, in seconds
        """
        latest = None
        for point in points:
            if point.loss is not None:
                latest = point
        if latest is None:
            return
        if self._observations and latest.step <= self._observations[-1].step:
            self._observations.clear()
            self._first = None
        self._point = latest
        self._observations.append(_Observation(now, latest.step, latest.tokens))
        self._first = self._first or self._observations[-1]

    def figures(self, memory_bytes: int | None = None) -> dict[str, Any]:
        """Where the training is, ready for JSON; ``None`` where nothing is known.

        :param memory_bytes: memory in use, for backends that do not say
        """
        point = self._point or Point(0)
        total = point.total_steps
        seconds = self._seconds_per_step()
        return {
            "step": point.step,
            "total_steps": total,
            "epoch": point.epoch,
            "epochs": self._epochs,
            "loss": _finite(point.loss),
            "learning_rate": _finite(point.learning_rate),
            "tokens_per_second": point.tokens_per_second or self._tokens_per_second(),
            "memory_bytes": point.memory_bytes or memory_bytes,
            "eta_seconds": None if seconds is None or total is None else max(total - point.step, 0) * seconds,
            "finite": point.finite,
        }

    def _seconds_per_step(self) -> float | None:
        """Mean over the last looks without the slowest and fastest tenth, so that neither a warm-up, an evaluation nor
        a checkpoint moves the estimate.
        """
        seen = list(self._observations)
        spans = [(b.now - a.now, b.step - a.step) for a, b in pairwise(seen)]
        if not spans:
            return None
        spans.sort(key=lambda span: span[0] / span[1])
        cut = max(1, len(spans) // 10) if len(spans) >= 5 else 0
        spans = spans[cut : len(spans) - cut]
        return sum(seconds for seconds, _ in spans) / sum(steps for _, steps in spans) or None

    def overall_tokens_per_second(self) -> float | None:
        """Tokens of all steps but those up to the first look, in which libraries warm up, by the time that they took.

        Evaluations and checkpoints between them count as time.
        """
        return _rate([self._first, *self._observations] if self._first else [])

    def _tokens_per_second(self) -> float | None:
        return _rate(self._observations)


def _rate(observations: Iterable[_Observation]) -> float | None:
    counted = [seen for seen in observations if seen.tokens is not None]
    if len(counted) < 2 or counted[-1].now <= counted[0].now:
        return None
    first, last = counted[0], counted[-1]
    return ((last.tokens or 0) - (first.tokens or 0)) / (last.now - first.now)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def progress_line(figures: Mapping[str, Any]) -> str:
    """One line for a log, of what :meth:`Progress.figures` gives; what is not known is left out.

    For example ``step 120/400 (30 %)  epoch 0.9/3  loss 1.234  lr 1.8e-04  512 tokens/s  memory 1.9 GiB  ETA 45 s``.

    :param figures: see there
    """
    step, total = figures["step"], figures["total_steps"]
    parts = [f"step {step}/{total} ({min(100 * step // total, 100)} %)" if total else f"step {step}"]
    if (epoch := figures["epoch"]) is not None:
        parts.append(f"epoch {epoch:.1f}" + (f"/{figures['epochs']:g}" if figures["epochs"] else ""))
    if (loss := figures["loss"]) is not None:
        parts.append(f"loss {loss:.3f}" if abs(loss) >= 0.01 or loss == 0 else f"loss {loss:.2e}")
    if not figures["finite"]:
        parts.append("loss or gradient NOT FINITE")
    if (rate := figures["learning_rate"]) is not None:
        parts.append(f"lr {rate:.1e}")
    if (tokens := figures["tokens_per_second"]) is not None:
        parts.append(f"{tokens:,.0f} tokens/s")
    if (memory := figures["memory_bytes"]) is not None:
        parts.append(f"memory {memory / 2**30:.1f} GiB" if memory >= 2**30 else f"memory {memory / 2**20:.0f} MiB")
    if (eta := figures["eta_seconds"]) is not None:
        parts.append(f"ETA {duration(eta)}")
    return "  ".join(parts)
