"""Ranges, round ticks, smoothing and number formats of the loss chart; pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from airflow_provider_finetune.runner.reporting.series import Bucket, Curve, Sample

_SPIKE_FACTOR = 3.0
"""A spike this many times as high as everything else is cut off; so the rest keeps a third of the height or more."""

_START_FACTOR = 8.0
"""The same for the fall at the start, which is worth seeing even where it takes most of the height."""

_DIVERGENCE_FACTOR = 20.0
"""Where a training diverges beyond this many times its own start and middle, only the way there is drawn to scale."""


@dataclass(frozen=True)
class Axis:
    """A linear map from values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        """The pixel of a value; values far outside stay near enough for any renderer."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, -1.0), 2.0) * (self.end - self.start)


def round_ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two values.

    :param low: the lower value
    :param high: the upper value
    :param count: about how many
    :param whole: whole numbers only
    """
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    factor = next(factor for factor in (1, 2, 2.5, 5, 10) if rough <= factor * power * 1.0001)
    size = factor * power
    if whole:
        size = max(1.0, math.ceil(size - 1e-9))
    first = math.ceil(low / size - 1e-9)
    last = math.floor(high / size + 1e-9)
    return [index * size for index in range(first, last + 1)]


def step_axis(first: int, last: int, start: float, end: float) -> Axis:
    """The axis of steps; one lone step stands in the middle."""
    low, high = (first - 1, last + 1) if first == last else (first, last)
    return Axis(low, high, start, end, round_ticks(low, high, 8, whole=True))


def loss_axis(loss: Curve, evaluations: Curve, start: float, end: float) -> Axis:
    """The axis of losses, fitted to the curve and not to its spikes.

    :param loss: the training's losses
    :param evaluations: the losses of its evaluations
    :param start: pixel of the lower end
    :param end: pixel of the upper end
    """
    samples = [*loss.samples(), *evaluations.samples()]
    if not samples:
        return Axis(0.0, 1.0, start, end, [0.0, 0.5, 1.0])
    low = min(value for _, value in samples)
    high = max(_loss_high(loss, low), low)
    calm = sorted(value for _, value in evaluations.samples())
    if calm:
        # Most evaluations are always shown: that all of them lie above the loss is usual.
        middle = calm[len(calm) // 2]
        high = max(high, min(calm[-1], middle + max(high - low, middle - low)))
    if high == low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    span = high - low
    high += 0.06 * span
    bottom = low - 0.14 * span
    if low >= 0 and bottom < 0.15 * high:
        bottom = 0.0
    return Axis(bottom, high, start, end, round_ticks(bottom, high, 6))


def _loss_high(loss: Curve, low: float) -> float:
    """The highest loss, or where that would flatten the rest, one a little above the rest."""
    highs = [bucket.high[1] for bucket in loss.buckets]
    if len(highs) < 6:
        return max(highs, default=low)
    part = max(3, len(highs) // 20)
    ordered = sorted(highs)
    usual = max(ordered[-1 - max(2, len(highs) // 50)], median(highs[-part:]))
    level = max(median(highs[:part]), median(highs))
    if usual - low > _DIVERGENCE_FACTOR * (level - low) and level > low:
        return low + 2 * (level - low)
    # The fall at the start is not a spike: the samples until the curve first comes down to its usual heights.
    fall = next(index for index, high in enumerate(highs) if high <= usual)
    span = max(usual - low, abs(low) * 0.02, 1e-12)
    result = usual
    for some, factor in ((highs[fall:], _SPIKE_FACTOR), (highs[:fall], _START_FACTOR)):
        top = max(some, default=low)
        result = max(result, top if top - low <= factor * span else usual + 0.25 * span)
    return result


def smoothing_span(count: int) -> int:
    """Over how many logged steps the smoothed curve averages; 1 for a curve too short to smooth."""
    return 1 if count < 8 else max(3, count // 16)


def smooth(loss: Curve, span: int, ceiling: float) -> list[Sample]:
    """The exponential moving average of a curve, one value a bucket.

    It is the mean of an average taken forwards and one taken backwards, so that it does not trail behind a falling
    curve.

    :param loss: the training's losses
    :param span: in logged steps; ``alpha = 2 / (span + 1)``
    :param ceiling: values above it count as this much, so that a spike does not drag the average along
    """
    forwards = _average(loss.buckets, span, ceiling)
    backwards = reversed(_average(loss.buckets[::-1], span, ceiling))
    pairs = zip(loss.buckets, forwards, backwards, strict=True)
    return [(bucket.last[0], (before + after) / 2) for bucket, before, after in pairs]


def _average(buckets: list[Bucket], span: int, ceiling: float) -> list[float]:
    keep = 1 - 2 / (span + 1)
    average = weight = 0.0
    result = []
    for bucket in buckets:
        kept = keep**bucket.count
        average = kept * average + (1 - kept) * min(bucket.total / bucket.count, ceiling)
        # The missing past before the first value is divided out, as in Adam.
        weight = kept * weight + (1 - kept)
        result.append(average / weight)
    return result


def by_pixel(samples: list[Sample], place: Callable[[float], float], most: int = 1500) -> list[Sample]:
    """Samples as they are if they are few, else the lowest and the highest in each column of pixels."""
    if len(samples) <= most:
        return samples
    columns: dict[int, list[Sample]] = {}
    for sample in samples:
        columns.setdefault(round(place(sample[0])), []).append(sample)
    kept = {samples[0], samples[-1]}
    for column in columns.values():
        kept |= {min(column, key=lambda sample: sample[1]), max(column, key=lambda sample: sample[1])}
    return sorted(kept)


def loss_text(value: float) -> str:
    """A loss with four significant digits, such as ``1.230``."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return scientific(value)
    return f"{value:#.4g}".rstrip(".") if value else "0"


def scientific(value: float) -> str:
    """A small or large number as people write it: ``2e-4``, ``1.5e6``."""
    if not value:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def count_text(value: float) -> str:
    """A whole number with thousands marked, in millions or billions from there on: ``1,200``, ``2.5M``."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:,.0f}"


def step_text(value: float, ticks: list[float]) -> str:
    """A step on its axis, in the unit that suits the last tick."""
    size, unit = next(((s, u) for s, u in ((1e9, "B"), (1e6, "M")) if ticks[-1] >= s), (1.0, ""))
    return f"{value / size:,g}{unit}" if unit and value else f"{value:,.0f}"


def tick_text(value: float, ticks: list[float]) -> str:
    """A tick's value with as many decimals as its neighbours need."""
    size = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    if max(abs(ticks[0]), abs(ticks[-1])) >= 1e5 or size < 1e-4:
        return scientific(value)
    decimals = max(0, -math.floor(math.log10(size) + 1e-9))
    if abs(size * 10**decimals - round(size * 10**decimals)) > 1e-6:
        decimals += 1
    return f"{value:,.{decimals}f}"
