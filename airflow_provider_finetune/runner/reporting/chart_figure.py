"""The drawing of the loss chart: one SVG element, styled by the classes of the page around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from airflow_provider_finetune.runner.reporting.chart_scale import (
    Axis,
    by_pixel,
    count_text,
    loss_axis,
    loss_text,
    round_ticks,
    scientific,
    smooth,
    smoothing_span,
    step_axis,
    step_text,
    tick_text,
)
from airflow_provider_finetune.runner.reporting.series import Bucket, Sample, Series

WIDTH = 960
_LEFT, _RIGHT = 66, 818
_TOP, _BOTTOM = 34, 384
_RATE_TOP, _RATE_BOTTOM = 424, 496
_READOUT = 16
_HOVER_STRIPS = 150
_MOST_MARKS = 40


@dataclass(frozen=True)
class Figure:
    """A drawing and what the page says of it."""

    svg: str
    final_name: str
    """What the last loss that is drawn is called: it is not the final one where that is not finite."""
    span: int
    """Logged steps that the smoothed curve averages over; 1 where it is not drawn."""
    clipped: Sample | None
    """The highest loss, if it is off the scale."""
    has_rates: bool


class _Plot:
    """The parts of the drawing, from the bottom layer to the top one."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.buckets = series.loss.buckets
        self.raw = list(series.loss.samples())
        self.evaluations = list(series.evaluations.samples())
        first, last = _step_range(series)
        self.x = step_axis(first, last, _LEFT, _RIGHT)
        self.y = loss_axis(series.loss, series.evaluations, _BOTTOM, _TOP)
        self.span = smoothing_span(series.loss.count)
        self.smoothed = smooth(series.loss, self.span, self.y.high) if self.span > 1 else []
        self.rates = [(bucket.last[0], b) for bucket in self.buckets if (b := bucket.learning_rate) is not None]
        self.bottom = _RATE_BOTTOM if self.rates else _BOTTOM
        ended = series.last is not None and series.loss.last is not None and series.last.step == series.loss.last[0]
        self.final_name = "final" if ended else "last finite"

    def place(self, sample: Sample) -> tuple[float, float]:
        """Where a sample stands; one off the scale, at the upper edge."""
        return self.x(sample[0]), max(self.y(sample[1]), _TOP)

    def layers(self) -> Iterator[str]:
        """The whole drawing, piece by piece."""
        yield from self._loss_grid()
        yield from self._non_finite()
        yield from self._curves()
        yield from self._epochs()
        if self.rates:
            yield from self._rate_panel()
        yield from self._step_axis()
        yield from self._hover()
        yield from self._clipped()
        yield from self._evaluations()
        yield from self._minimum()
        yield from self._ends()

    def _loss_grid(self) -> Iterator[str]:
        for tick in self.y.ticks:
            y = self.y(tick)
            yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
            yield _text(_LEFT - 10, y + 4, tick_text(tick, self.y.ticks), "tick end")
        middle = (_TOP + _BOTTOM) / 2
        name = _text(0, 0, "loss (nats per token)", "axis middle")
        yield f'<g transform="translate(16 {middle}) rotate(-90)">{name}</g>'
        if not self.raw and not self.evaluations:
            yield _text((_LEFT + _RIGHT) / 2, middle, "No finite loss was logged.", "empty middle")

    def _epochs(self) -> Iterator[str]:
        """The ends of the epochs, as many as there is room for."""
        ends = []
        for before, after in pairwise(self.buckets):
            if before.epoch is None or after.epoch is None or int(after.epoch) <= int(before.epoch):
                continue
            epoch = int(after.epoch)
            share = (epoch - before.epoch) / (after.epoch - before.epoch)
            ends.append((epoch, self.x(before.last[0] + share * (after.last[0] - before.last[0]))))
        step = 1 + len(ends) // 12
        for epoch, x in ends:
            if epoch % step == 0 and x < _RIGHT - 4:
                yield f'<path class="epoch" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>'
                anchor, at = ("end", x - 5) if x > _RIGHT - 60 else ("", x + 5)
                yield _text(at, _TOP + 11, f"epoch {epoch}", f"note {anchor}")

    def _non_finite(self) -> Iterator[str]:
        """Red bands; neighbours that would touch are one band."""
        bands: list[list[float]] = []
        for run in self.series.non_finite:
            start, end = self.x(run.first), self.x(run.last)
            if bands and start - bands[-1][1] < 4:
                bands[-1][1] = end
                bands[-1][3] = run.last
                bands[-1][4] += run.count
            else:
                bands.append([start, end, run.first, run.last, run.count])
        for start, end, first, last, count in bands:
            steps = f"step {count_text(first)}" if first == last else f"steps {count_text(first)} to {count_text(last)}"
            title = f"<title>Loss or gradient NaN or infinite: {steps} ({count_text(count)} logged)</title>"
            x, width = start - 1, max(end - start, 0) + 2
            yield f'<g class="bad"><rect x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{_BOTTOM - _TOP}"/>'
            yield f'<path d="M{(start + end) / 2 - 4:.1f} {_BOTTOM - 12}l8 8m0 -8l-8 8"/>{title}</g>'

    def _curves(self) -> Iterator[str]:
        yield f'<clipPath id="plot"><rect x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"/>'
        yield '</clipPath><g clip-path="url(#plot)">'
        raw = by_pixel(self.raw, self.x)
        faint = "raw" if self.smoothed else "strong"
        if len(raw) < len(self.raw):
            faint += " dense"
        if len(raw) > 1:
            yield f'<polyline class="{faint}" points="{self._vertices(raw)}"/>'
        if 1 < len(self.raw) <= 40:
            yield from (
                _dot(*self.place(sample), 2.5, f"{faint}-dot") for sample in self.raw if sample[1] < self.y.high
            )
        if self.smoothed:
            yield f'<polyline class="strong" points="{self._vertices(by_pixel(self.smoothed, self.x, 900))}"/>'
        yield "</g>"

    def _vertices(self, samples: Iterable[Sample]) -> str:
        return " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in samples)

    def _rate_panel(self) -> Iterator[str]:
        top = max(rate for _, rate in self.rates) or 1.0
        ticks = round_ticks(0, top * 1.05, 2)
        y = Axis(0.0, max(top * 1.08, ticks[-1]), _RATE_BOTTOM, _RATE_TOP, ticks)
        for tick in ticks:
            yield f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_RIGHT}"/>'
            yield _text(_LEFT - 10, y(tick) + 4, scientific(tick), "tick end")
        yield _text(_LEFT, _RATE_TOP - 12, "learning rate", "axis")
        shown = by_pixel(self.rates, self.x, 600)
        if len(shown) > 1:
            line = " ".join(f"{self.x(step):.1f},{y(rate):.1f}" for step, rate in shown)
            start, end = self.x(shown[0][0]), self.x(shown[-1][0])
            yield f'<polygon class="rate-area" points="{start:.1f},{_RATE_BOTTOM} {line} {end:.1f},{_RATE_BOTTOM}"/>'
            yield f'<polyline class="rate" points="{line}"/>'
        step, rate = self.rates[-1]
        yield _dot(self.x(step), y(rate), 3, "rate-dot")
        yield _text(_RIGHT + 12, y(rate) + 4, scientific(rate), "label rate-text")

    def _step_axis(self) -> Iterator[str]:
        yield f'<path class="base" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>'
        if self.rates:
            yield f'<path class="base" d="M{_LEFT} {_RATE_BOTTOM}H{_RIGHT}"/>'
        for tick in self.x.ticks:
            yield f'<path class="base" d="M{self.x(tick):.1f} {self.bottom}v5"/>'
            yield _text(self.x(tick), self.bottom + 20, step_text(tick, self.x.ticks), "tick middle")
        yield _text((_LEFT + _RIGHT) / 2, self.bottom + 42, "optimizer step", "axis middle")

    def _hover(self) -> Iterator[str]:
        """Strips that show a guide and the values there while the pointer is over them; no script needed."""
        count = min(_HOVER_STRIPS, len(self.buckets))
        total = len(self.buckets)
        edges = [_LEFT - 6.0]
        groups = [range(total * index // count, total * (index + 1) // count) for index in range(count)]
        for group, following in pairwise(groups):
            right, left = self.buckets[group[-1]].last[0], self.buckets[following[0]].first[0]
            edges.append((self.x(right) + self.x(left)) / 2)
        edges.append(_RIGHT + 6.0)
        yield '<g aria-hidden="true">'
        for group, start, end in zip(groups, edges, edges[1:], strict=False):
            middle = group[len(group) // 2]
            smoothed = self.smoothed[middle] if self.smoothed else self.buckets[middle].last
            x, y = self.place((self.buckets[middle].last[0], smoothed[1]))
            yield f'<g class="hit"><rect x="{start:.1f}" y="{_TOP}" width="{max(end - start, 0.1):.1f}"'
            yield f' height="{self.bottom - _TOP}"/><path d="M{x:.1f} {_TOP}V{self.bottom}"/>'
            yield _dot(x, y, 3.5, "here")
            yield _text(_LEFT, _READOUT, self._readout([self.buckets[index] for index in group], smoothed), "readout")
            yield "</g>"
        yield "</g>"

    def _readout(self, buckets: list[Bucket], smoothed: Sample) -> str:
        first, last = buckets[0].first[0], buckets[-1].last[0]
        low, high = min(bucket.low[1] for bucket in buckets), max(bucket.high[1] for bucket in buckets)
        steps = f"step {last:,}" if first == last else f"steps {first:,} to {last:,}"
        parts = [steps, f"loss {loss_text(low)}" + (f" to {loss_text(high)}" if high > low else "")]
        if self.smoothed:
            parts.append(f"smoothed {loss_text(smoothed[1])}")
        if (rate := buckets[-1].learning_rate) is not None:
            parts.append(f"lr {scientific(rate)}")
        if (epoch := buckets[-1].epoch) is not None:
            parts.append(f"epoch {epoch:.2f}")
        return "  ·  ".join(parts)

    def _clipped(self) -> Iterator[str]:
        """Arrows at the upper edge, the highest of those that would touch."""
        columns: dict[int, Sample] = {}
        for sample in self.raw:
            if sample[1] > self.y.high:
                column = int(self.x(sample[0]) // 10)
                columns[column] = max(columns.get(column, sample), sample, key=lambda one: one[1])
        for step, value in columns.values():
            title = f"<title>Off the scale: loss {loss_text(value)} at step {step:,}</title>"
            yield f'<path class="arrow" d="M{self.x(step):.1f} {_TOP - 7}l5 8h-10z">{title}</path>'

    def _evaluations(self) -> Iterator[str]:
        marks = self.evaluations
        if len(marks) > 1:
            line = " ".join("{:.1f},{:.1f}".format(*self.place(sample)) for sample in by_pixel(marks, self.x, 600))
            yield f'<polyline class="eval-line" points="{line}"/>'
        best = self.series.evaluations.best
        shown = marks[:: 1 + len(marks) // _MOST_MARKS]
        size = 5 if len(marks) <= _MOST_MARKS else 3.5
        for sample in [*(mark for mark in shown if mark != best), *([best] if best else [])]:
            x, y = self.place(sample)
            what = "Lowest evaluation loss" if sample == best else "Evaluation loss"
            kind = "eval best" if sample == best else "eval"
            yield f'<path class="{kind}" d="M{x:.1f} {y - size:.1f}l{size} {size}l-{size} {size}l-{size} -{size}z">'
            yield f"<title>{what} {loss_text(sample[1])} at step {sample[0]:,}</title></path>"

    def _minimum(self) -> Iterator[str]:
        best = self.series.loss.best
        if best is None:
            return
        x, y = self.place(best)
        title = f"<title>Lowest loss {loss_text(best[1])} at step {best[0]:,}</title>"
        yield f'<circle class="minimum" cx="{x:.1f}" cy="{y:.1f}" r="5.5">{title}</circle>'
        if best == self.series.loss.last:
            return
        # The label is about 130 wide: near an edge it begins or ends at the mark, and below unless there is no room.
        anchor = "" if x < _LEFT + 65 else "end" if x > _RIGHT - 65 else "middle"
        at = max(x, _LEFT + 6) if not anchor else min(x, _RIGHT - 6) if anchor == "end" else x
        down = y + 21 if y + 26 < _BOTTOM else y - 13
        yield _text(at, down, f"min {loss_text(best[1])} at step {best[0]:,}", f"label minimum-text {anchor}")

    def _ends(self) -> Iterator[str]:
        """The last values, written beside the plot and pushed apart where they would overlap."""
        last, evaluation = self.series.loss.last, self.series.evaluations.last
        labels = []
        if last is not None:
            x, y = self.place(last)
            yield _dot(
                x, y, 4, "final", f"{self.final_name.capitalize()} loss {loss_text(last[1])} at step {last[0]:,}"
            )
            name = self.final_name
            if last == self.series.loss.best and self.series.loss.count > 1:
                name += ", min"
            off = " ▲" if last[1] > self.y.high else ""
            labels.append((y, f"{name} {loss_text(last[1])}{off}", "final-text"))
        if evaluation is not None:
            labels.append((self.place(evaluation)[1], f"eval {loss_text(evaluation[1])}", "eval-text"))
        labels.sort()
        if len(labels) == 2 and (gap := labels[1][0] - labels[0][0]) < 16:
            shift = (16 - gap) / 2
            labels = [(labels[0][0] - shift, *labels[0][1:]), (labels[1][0] + shift, *labels[1][1:])]
        for y, text, kind in labels:
            yield _text(_RIGHT + 12, y + 4, text, f"label {kind}")


def draw(series: Series, description: str) -> Figure:
    """Draws a series.

    :param series: what to draw
    :param description: the drawing in words, for people who cannot see it
    """
    plot = _Plot(series)
    height = plot.bottom + 54
    body = "".join(plot.layers())
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Loss by training step" aria-describedby="words">'
        f'<desc id="words">{escape(description)}</desc>{body}</svg>'
    )
    highest = max(plot.raw, key=lambda sample: sample[1], default=None)
    clipped = highest if highest and highest[1] > plot.y.high else None
    return Figure(svg, plot.final_name, plot.span, clipped, bool(plot.rates))


def _step_range(series: Series) -> tuple[int, int]:
    steps = [bucket.first[0] for bucket in series.loss.buckets[:1]]
    steps += [bucket.first[0] for bucket in series.evaluations.buckets[:1]]
    steps += [curve.last[0] for curve in (series.loss, series.evaluations) if curve.last]
    steps += [step for run in series.non_finite for step in (run.first, run.last)]
    return (min(steps), max(steps)) if steps else (0, 1)


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes.strip()}">{escape(text)}</text>'


def _dot(x: float, y: float, radius: float, classes: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{inner}</circle>'
