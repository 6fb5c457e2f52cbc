"""The loss chart.

Aspects: one self-contained, well-formed, small page at every size; user text is escaped; what is marked, and with which
value; spikes and divergence do not flatten the rest; labels do not overlap; odd series are drawn.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from airflow_provider_finetune.runner.reporting.chart import render_chart
from airflow_provider_finetune.runner.reporting.chart_scale import (
    loss_axis,
    loss_text,
    round_ticks,
    scientific,
    smooth,
    step_text,
    tick_text,
)
from airflow_provider_finetune.runner.reporting.metrics import Point
from airflow_provider_finetune.runner.reporting.series import Curve, Series

NAN = math.nan


def training(count: int, evaluations: int = 0) -> Iterator[Point]:
    for step in range(1, count + 1):
        share = step / count
        loss = 1 + 2 * math.exp(-6 * share) + (step * 7919 % 1000) / 4000
        yield Point(step, 3 * share, count, loss, 2e-4 * (1 - share), 1.0, tokens=step * 100)
        if evaluations and step % (count // evaluations) == 0:
            yield Point(step, 3 * share, eval_loss=1.2 + 2 * math.exp(-6 * share))


def drawing(page: str) -> ElementTree.Element:
    found = re.search(r"<svg [^>]*role=\"img\".*</svg>(?=</div>\n)", page, re.DOTALL)
    assert found
    return ElementTree.fromstring(found.group())


def marks(page: str, kind: str) -> list[ElementTree.Element]:
    return [element for element in drawing(page).iter() if kind in element.get("class", "").split()]


def texts(page: str, kind: str) -> list[str]:
    return [element.text or "" for element in marks(page, kind)]


@pytest.fixture(scope="module")
def million() -> Series:
    return Series(training(1_000_000, 500))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 20, 1000, 5000])
def test_a_page_of_any_number_of_steps_is_small_and_well_formed(count: int) -> None:
    page = render_chart(training(count, min(count, 40)), title="model")
    assert len(page.encode()) < 200_000
    assert drawing(page).get("role") == "img"
    assert "nan" not in page.lower().replace("nan or infinite", "")


def test_a_million_steps_fit_into_200_kb(million: Series) -> None:
    page = render_chart(million, title="t" * 100_000, subtitle="&" * 100_000)
    assert len(page.encode()) < 200_000
    assert texts(page, "final-text")


def test_the_worst_series_fits_into_200_kb() -> None:
    random.seed(2)
    points = []
    for step in range(10**9, 10**9 + 20_000):
        loss = random.choice([1.0, 1e9, NAN]) * random.random()
        points.append(Point(step, step / 10, 10**10, loss, random.random() / 1e5, finite=not math.isnan(loss)))
        if step % 7 == 0:
            points.append(Point(step, eval_loss=random.random()))
    assert len(render_chart(points, title="x").encode()) < 200_000


def test_nothing_foreign_and_no_script_is_in_the_page() -> None:
    page = render_chart(training(100, 5), title="model")
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|https?:|\son\w+=", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_what_the_user_gave_is_escaped() -> None:
    page = render_chart(training(5), title='<script>alert("1")</script>', subtitle="a & b </style>")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in page
    assert "a &amp; b &lt;/style&gt;" in page
    assert page.count("</style>") == 1


def test_the_page_says_in_words_what_is_drawn() -> None:
    points = [Point(1, loss=3.0), Point(2, loss=1.0), Point(2, eval_loss=1.5), Point(3, loss=2.0)]
    root = drawing(render_chart(points, title="m"))
    words = next(element for element in root.iter() if element.tag == "desc")
    assert root.get("aria-describedby") == words.get("id")
    assert words.text == (
        "Training loss over 3 steps. It ends at 2.000. Its lowest value is 1.000 at step 2. "
        "The lowest evaluation loss is 1.500 at step 2."
    )


def test_minimum_final_value_and_evaluations_are_marked_with_their_values() -> None:
    points = [Point(step, loss=loss) for step, loss in enumerate((3.0, 2.0, 1.0, 1.25), start=1)]
    page = render_chart([*points, Point(2, eval_loss=2.5), Point(4, eval_loss=1.5)], title="m")
    assert texts(page, "minimum-text") == ["min 1.000 at step 3"]
    assert texts(page, "final-text") == ["final 1.250"]
    assert texts(page, "eval-text") == ["eval 1.500"]
    titles = [mark[0].text for mark in marks(page, "eval")]
    assert titles == ["Evaluation loss 2.500 at step 2", "Lowest evaluation loss 1.500 at step 4"]


def test_a_minimum_at_the_end_has_one_label() -> None:
    page = render_chart([Point(1, loss=2.0), Point(2, loss=1.0)], title="m")
    assert texts(page, "minimum-text") == []
    assert texts(page, "final-text") == ["final, min 1.000"]


def test_labels_at_the_end_do_not_overlap() -> None:
    page = render_chart([Point(1, loss=2.0), Point(2, loss=1.0), Point(2, eval_loss=1.001)], title="m")
    final, evaluation = marks(page, "final-text")[0], marks(page, "eval-text")[0]
    assert abs(float(final.get("y", "")) - float(evaluation.get("y", ""))) >= 15.9


@pytest.mark.parametrize("step", [1, 2, 50, 99, 100])
def test_the_label_of_the_minimum_stays_inside_the_plot(step: int) -> None:
    points = [Point(s, loss=0.5 if s == step else 1.0) for s in range(1, 102)]
    label = marks(render_chart(points, title="m"), "minimum-text")[0]
    x, width = float(label.get("x", "")), 130.0
    start = x - {"end": width, "middle": width / 2}.get(label.get("class", "").split()[-1], 0.0)
    assert start >= 60
    assert start + width <= 830


def test_bad_steps_are_marked_and_said() -> None:
    points = [Point(step, loss=NAN if step in (5, 6, 40) else 1.0, finite=step not in (5, 6, 40)) for step in range(60)]
    page = render_chart(points, title="m")
    assert "NaN or infinite in 3 logged steps, first at step 5." in page
    titles = [mark.findtext("title") for mark in marks(page, "bad")]
    assert titles == [
        "Loss or gradient NaN or infinite: steps 5 to 6 (2 logged)",
        "Loss or gradient NaN or infinite: step 40 (1 logged)",
    ]


def test_a_training_that_ends_in_nan_does_not_call_another_loss_final() -> None:
    points = [Point(step, loss=1.0 if step < 30 else NAN, finite=step < 30) for step in range(1, 41)]
    page = render_chart(points, title="m")
    assert texts(page, "final-text") == ["last finite 1.000"]
    assert "not finite" in page
    assert "final loss" not in page


def test_only_bad_steps_give_a_page_that_says_so() -> None:
    page = render_chart([Point(1, loss=NAN, finite=False)], title="m")
    assert texts(page, "empty") == ["No finite loss was logged."]


def test_the_learning_rate_has_a_panel_only_if_there_is_one() -> None:
    assert marks(render_chart(training(30), title="m"), "rate")
    page = render_chart([Point(step, loss=1.0) for step in range(30)], title="m")
    assert not marks(page, "rate")
    assert "learning rate" not in page


def test_the_smoothing_is_named_and_short_curves_are_not_smoothed() -> None:
    assert "exponential moving average over 6 logged steps" in render_chart(training(100), title="m")
    short = render_chart(training(7), title="m")
    assert "moving average" not in short
    assert not marks(short, "raw")


def test_the_ends_of_epochs_are_marked() -> None:
    assert texts(render_chart(training(90), title="m"), "note") == ["epoch 1", "epoch 2"]


def test_a_spike_is_cut_off_and_told() -> None:
    points = [Point(step, loss=1e6 if step == 60 else 2.0 - step / 200) for step in range(1, 201)]
    page = render_chart(points, title="m")
    assert "off the scale, up to 1e6 at step 60." in page
    assert [mark[0].text for mark in marks(page, "arrow")] == ["Off the scale: loss 1e6 at step 60"]
    assert loss_axis(Series(points).loss, Curve(), 0, 1).high < 3


def test_the_fall_at_the_start_is_shown() -> None:
    points = [Point(step, loss=2.0 + 9 * math.exp(-step / 10)) for step in range(1, 301)]
    assert "off the scale" not in render_chart(points, title="m")


def test_a_training_that_diverges_does_not_hide_how_it_began() -> None:
    points = [Point(step, loss=2 - step / 300 if step < 200 else math.exp((step - 190) / 8)) for step in range(1, 301)]
    assert loss_axis(Series(points).loss, Curve(), 0, 1).high < 10
    assert "▲" in texts(render_chart(points, title="m"), "final-text")[0]


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.7, -3.0, 1e12])
def test_a_constant_loss_has_a_range(value: float) -> None:
    axis = loss_axis(Series(Point(step, loss=value) for step in range(20)).loss, Curve(), 0, 1)
    assert axis.low < axis.high
    assert len(axis.ticks) >= 2


def test_smoothing_does_not_trail_behind_and_ignores_spikes() -> None:
    curve = Curve()
    for step in range(200):
        curve.add(step, 1e6 if step == 100 else 3.0 - step / 100)
    smoothed = dict(smooth(curve, 10, 4.0))
    assert smoothed[50] == pytest.approx(2.5, abs=0.01)
    assert smoothed[150] == pytest.approx(1.5, abs=0.01)
    assert max(smoothed.values()) < 3.1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.873, 1.02), (1e-7, 3e-7), (-5, 5), (0, 123_456), (1e9, 2e9)])
def test_ticks_are_few_round_and_distinct(low: float, high: float) -> None:
    ticks = round_ticks(low, high, 6)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 * abs(low) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert len({tick_text(tick, ticks) for tick in ticks}) == len(ticks)


def test_numbers_read_well() -> None:
    assert [loss_text(value) for value in (1.23, 12.345, 1234.0, 0.0, 2e-6, 1.5e7)] == [
        "1.230", "12.35", "1234", "0", "2e-6", "1.5e7",
    ]  # fmt: skip
    assert [scientific(value) for value in (2e-4, 4.12e-5, 0.0)] == ["2e-4", "4.12e-5", "0"]
    assert [step_text(value, [0, 1_000_000]) for value in (0, 200_000, 1_000_000)] == ["0", "0.2M", "1M"]
    assert step_text(12_000, [0, 20_000]) == "12,000"
