"""A training's points in bounded memory: last and best values, and a curve that keeps its shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_provider_finetune.runner.reporting.metrics import Point

Sample = tuple[int, float]
"""A step and the value there."""

_CURVE_BUCKETS = 2048
_MAX_RUNS = 1024


@dataclass(slots=True)
class Bucket:
    """Some neighbouring samples of a curve: its first, last, lowest and highest one, their number and sum."""

    first: Sample
    last: Sample
    low: Sample
    high: Sample
    count: int
    total: float
    learning_rate: float | None
    epoch: float | None

    def take(self, sample: Sample, learning_rate: float | None, epoch: float | None) -> None:
        """Adds one later sample."""
        self.last = sample
        value = sample[1]
        if value < self.low[1]:
            self.low = sample
        elif value > self.high[1]:
            self.high = sample
        self.count += 1
        self.total += value
        self.learning_rate = learning_rate
        self.epoch = epoch

    def absorb(self, later: Bucket) -> None:
        """Adds the samples of the bucket that follows."""
        self.last = later.last
        if later.low[1] < self.low[1]:
            self.low = later.low
        if later.high[1] > self.high[1]:
            self.high = later.high
        self.count += later.count
        self.total += later.total
        self.learning_rate = later.learning_rate
        self.epoch = later.epoch

    def samples(self) -> list[Sample]:
        """The distinct samples that are kept, by step."""
        return sorted({self.first, self.low, self.high, self.last})


class Curve:
    """Samples in the order of their steps, exact up to ``capacity`` of them and thinned evenly beyond.

    Thinning merges neighbours two by two; the lowest and the highest sample of each bucket stay, so minimum and spikes
    are never lost.
    """

    def __init__(self, capacity: int = _CURVE_BUCKETS) -> None:
        self.buckets: list[Bucket] = []
        self.best: Sample | None = None
        """The first sample with the lowest value."""
        self._capacity = capacity
        self._width = 1

    @property
    def last(self) -> Sample | None:
        """The latest sample."""
        return self.buckets[-1].last if self.buckets else None

    @property
    def count(self) -> int:
        """How many samples were added and not superseded."""
        return sum(bucket.count for bucket in self.buckets)

    def add(self, step: int, value: float, learning_rate: float | None = None, epoch: float | None = None) -> None:
        """Appends a finite value; a step that is there already supersedes itself and all later ones."""
        if self.buckets and step <= self.buckets[-1].last[0]:
            self.rewind(step)
        sample = (step, value)
        if self.best is None or value < self.best[1]:
            self.best = sample
        if self.buckets and self.buckets[-1].count < self._width:
            self.buckets[-1].take(sample, learning_rate, epoch)
            return
        self.buckets.append(Bucket(sample, sample, sample, sample, 1, value, learning_rate, epoch))
        if len(self.buckets) > self._capacity:
            self._halve()

    def rewind(self, step: int) -> None:
        """Forgets all samples from a step on. In a thinned curve, those of the bucket that is cut are approximate."""
        while self.buckets and self.buckets[-1].first[0] >= step:
            self.buckets.pop()
        if self.buckets and self.buckets[-1].last[0] >= step:
            cut = self.buckets.pop()
            for kept in cut.samples():
                if kept[0] < step:
                    self.add(*kept, cut.learning_rate, cut.epoch)
        lows = [bucket.low for bucket in self.buckets]
        self.best = min(lows, key=lambda sample: sample[1]) if lows else None

    def samples(self) -> Iterator[Sample]:
        """The samples that are kept, by step."""
        for bucket in self.buckets:
            yield from bucket.samples()

    def _halve(self) -> None:
        for earlier, later in zip(self.buckets[::2], self.buckets[1::2], strict=False):
            earlier.absorb(later)
        del self.buckets[1::2]
        self._width *= 2


@dataclass(slots=True)
class Run:
    """Neighbouring logged steps whose loss or gradient was not finite."""

    first: int
    last: int
    count: int


class Series:
    """Everything that is kept of a training's metrics; a million points cost what two thousand do.

    A step that comes again, because a training was resumed or started anew in the same directory, supersedes what was
    known of it and of all later steps.
    """

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self.loss = Curve()
        self.evaluations = Curve()
        self.non_finite: list[Run] = []
        self.last: Point | None = None
        """The latest point of a training step."""
        self._eval_loss: float | None = None
        self._tokens: int | None = None
        self._samples: int | None = None
        self._peak_memory: int | None = None
        self._timed_tokens, self._seconds = 0, 0.0
        for point in points:
            self.add(point)

    def add(self, point: Point) -> None:
        """Takes the next point of the file."""
        if point.loss is not None or point.eval_loss is None:
            self._add_training(point)
        if point.eval_loss is not None:
            self._eval_loss = point.eval_loss
            if math.isfinite(point.eval_loss):
                self.evaluations.add(point.step, point.eval_loss, None, point.epoch)

    def _add_training(self, point: Point) -> None:
        previous = self.last
        if previous is not None and point.step <= previous.step:
            self._rewind(point.step)
        if point.loss is not None and math.isfinite(point.loss):
            rate = point.learning_rate
            rate = rate if rate is not None and math.isfinite(rate) else None
            self.loss.add(point.step, point.loss, rate, point.epoch)
        if not point.finite:
            self._add_non_finite(point.step, previous)
        if previous is not None and point.tokens is not None and point.tokens_per_second:
            # The first step has the libraries' warm-up in it.
            tokens = point.tokens - (self._tokens or 0)
            self._timed_tokens += tokens
            self._seconds += tokens / point.tokens_per_second
        self.last = point
        if point.tokens is not None:
            self._tokens = point.tokens
        if point.samples is not None:
            self._samples = point.samples
        if point.memory_bytes is not None:
            self._peak_memory = max(self._peak_memory or 0, point.memory_bytes)

    @property
    def tokens_per_second(self) -> float | None:
        """Of all steps but the first, as the backend has timed them; ``None`` where it does not."""
        return self._timed_tokens / self._seconds if self._seconds else None

    def _add_non_finite(self, step: int, previous: Point | None) -> None:
        runs = self.non_finite
        continues = bool(runs) and previous is not None and runs[-1].last == previous.step
        if runs and (continues or len(runs) >= _MAX_RUNS):
            runs[-1].last = step
            runs[-1].count += 1
        else:
            runs.append(Run(step, step, 1))

    def _rewind(self, step: int) -> None:
        self.loss.rewind(step)
        self.evaluations.rewind(step)
        self._eval_loss = self.evaluations.last[1] if self.evaluations.last else None
        while self.non_finite and self.non_finite[-1].first >= step:
            self.non_finite.pop()
        if self.non_finite and (run := self.non_finite[-1]).last >= step:
            run.count = max(1, run.count * (step - run.first) // (run.last - run.first + 1))
            run.last = step - 1

    def curve(self, limit: int = 100) -> list[list[float]]:
        """The loss as at most ``limit`` pairs of step and value; see :func:`reduce_curve`."""
        return reduce_samples(list(self.loss.samples()), limit)

    def summary(self) -> dict[str, Any]:
        """Last and best values, ready for JSON.

        Values are the last ones that were logged. One that is not finite is ``None`` here, and its key stands in the
        list ``not_finite``. ``tokens`` and ``samples`` count what was processed; ``peak_gpu_memory_bytes`` is what the
        backend has allocated there at most, where it measures that; ``non_finite_steps`` counts logged steps whose
        loss or gradient was NaN or infinite. In fp16 a few infinite gradients at the start are normal: the loss scaler
        skips those steps.
        """
        last = self.last
        values: dict[str, Any] = {
            "loss": last.loss if last else None,
            "eval_loss": self._eval_loss,
            "learning_rate": last.learning_rate if last else None,
            "grad_norm": last.grad_norm if last else None,
        }
        not_finite = [key for key, value in values.items() if value is not None and not math.isfinite(value)]
        best_step, best_loss = self.loss.best or (None, None)
        best_eval_step, best_eval_loss = self.evaluations.best or (None, None)
        return {
            **{key: None if key in not_finite else value for key, value in values.items()},
            "best_loss": best_loss,
            "best_step": best_step,
            "best_eval_loss": best_eval_loss,
            "best_eval_step": best_eval_step,
            "epoch": last.epoch if last else None,
            "steps": last.step if last else 0,
            "total_steps": last.total_steps if last else None,
            "tokens": self._tokens,
            "tokens_per_second": self.tokens_per_second,
            "samples": self._samples,
            "peak_gpu_memory_bytes": self._peak_memory,
            "non_finite_steps": sum(run.count for run in self.non_finite),
            "first_non_finite_step": self.non_finite[0].first if self.non_finite else None,
            "not_finite": not_finite,
        }


def reduce_curve(points: Series | Iterable[Point], limit: int = 100) -> list[list[float]]:
    """A loss curve small enough to travel, that still looks like itself.

    First, last, lowest and highest value are kept; of each of the equal parts between, the lowest and the highest.

    :param points: a training's points, or the series made of them
    :param limit: most pairs in the result; the last, the first, the lowest and the highest value have precedence
    :return: pairs of step and loss, by step; the loss has 6 significant digits; values that are not finite are left out
    """
    return (points if isinstance(points, Series) else Series(points)).curve(limit)


def reduce_samples(samples: list[Sample], limit: int) -> list[list[float]]:
    """As :func:`reduce_curve`, of samples that are in order."""
    if len(samples) > limit:
        kept = _landmarks(samples)[: max(limit, 0)]
        parts = (limit - len(kept)) // 2
        for part in range(parts):
            piece = samples[len(samples) * part // parts : len(samples) * (part + 1) // parts]
            kept += [min(piece, key=lambda sample: sample[1]), max(piece, key=lambda sample: sample[1])]
        samples = sorted(set(kept))
    return [[step, float(f"{value:.6g}")] for step, value in samples]


def _landmarks(samples: list[Sample]) -> list[Sample]:
    lowest = min(samples, key=lambda sample: sample[1])
    highest = max(samples, key=lambda sample: sample[1])
    return list(dict.fromkeys([samples[-1], samples[0], lowest, highest]))
