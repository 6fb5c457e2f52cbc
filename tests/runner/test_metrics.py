"""What the runner makes of the metrics files.

Aspects: the rows of each backend, with their quirks; a file that grows, is cut, replaced or damaged; last, best and
non-finite values; steps that come again; the curve; progress figures; a million steps.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.contract.durations import duration
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower, Point, metrics_file
from airflow_provider_finetune.runner.reporting.progress import Progress, progress_line
from airflow_provider_finetune.runner.reporting.series import Curve, Series, reduce_curve

NAN = math.nan


def write(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def lora_row(step: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 100, "max_steps": 300, "loss": loss, "learning_rate": 2e-4, **more}


def sft_row(step: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "epoch": (step - 1) // 50,
        "step": step,
        "rank": 0,
        "overall_throughput": 8.0,
        "lr": 1e-5,
        "cuda_mem_allocated": 12.5,
        "num_loss_counted_tokens": 300,
        "num_tokens_rank0": 1000,
        "batch_size": 16,
        "avg_loss": loss,
        "samples_seen": 16 * step,
        "gradnorm": 0.7,
        "total_samples": 800,
        "num_epoch_steps": 50,
        "timestamp": f"2026-01-01T00:{step // 60:02}:{step % 60:02}.5",
        **more,
    }


def osft_row(step: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": (step - 1) // 40,
        "steps_per_epoch": 40,
        "lr": 5e-6,
        "grad_norm": 0.9,
        "loss": loss,
        "num_total_tokens": 2000,
        "tokens_per_second": 450.0,
        "total_samples_accumulated": 8 * step,
        "total_tokens_accumulated": 600 * step,
        "peak_memory_usage_GB": 1.5,
        "val_loss": None,
        "timestamp": f"2026-01-01T00:{step // 60:02}:{step % 60:02}.5",
        **more,
    }


class TestBackends:
    def test_lora_rows_become_points_and_the_final_summary_row_does_not(self, tmp_path: Path) -> None:
        write(
            metrics_file(tmp_path, "lora_sft"),
            lora_row(1, 2.5, grad_norm=0.4, num_tokens=100),
            {"step": 1, "epoch": 0.01, "max_steps": 300, "eval_loss": 2.25, "eval_num_tokens": 100},
            {"step": 1, "epoch": 0.01, "max_steps": 300, "train_runtime": 9.0, "train_loss": 2.5, "num_tokens": 100},
        )
        assert MetricsFollower(tmp_path, "lora_sft", 3).poll() == [
            Point(1, 0.01, 300, 2.5, 2e-4, 0.4, tokens=100),
            Point(1, 0.01, eval_loss=2.25),
        ]

    def test_lora_tokens_go_on_where_trl_counts_from_zero_after_a_resume(self, tmp_path: Path) -> None:
        tokens = [(1, 100), (2, 200), (3, 90), (4, 180)]
        write(metrics_file(tmp_path, "lora_sft"), *(lora_row(step, num_tokens=count) for step, count in tokens))
        points = MetricsFollower(tmp_path, "lora_sft", 3).poll()
        assert [point.tokens for point in points] == [100, 200, 290, 380]

    def test_sft_skips_the_parameter_dumps_and_takes_the_total_from_the_epochs(self, tmp_path: Path) -> None:
        write(
            metrics_file(tmp_path, "sft"),
            {"model_name_or_path": "m", "learning_rate": 1e-5, "num_epochs": 3, "samples_seen": 0, "last_step": 0},
            {"num_gpus": 1, "num_batches": 50, "total_samples": 800},
            sft_row(50, 1.75),
            {"val_loss": 1.9, "val_num_tokens": 5000, "step": 50, "timestamp": "2026-01-01T00:00:52"},
            sft_row(75),
        )
        trained, evaluated, later = MetricsFollower(tmp_path, "sft", 3).poll()
        assert trained == Point(
            50, 1.0, 150, 1.75, 1e-5, 0.7, tokens=1000, tokens_per_second=500.0, samples=800, finite=True
        )
        assert evaluated == Point(50, 1.0, eval_loss=1.9)
        assert (later.epoch, later.tokens) == (1.5, 2000)

    def test_sft_steps_go_on_where_it_counts_from_one_after_an_epoch(self, tmp_path: Path) -> None:
        def again(step: int) -> dict[str, Any]:
            return sft_row(
                step, epoch=1 + (step - 1) // 50, timestamp=f"2026-01-01T01:{step // 60:02}:{step % 60:02}.5"
            )

        first, second = [sft_row(step) for step in (49, 50, 51)], [again(step) for step in (1, 2, 51)]
        lost = [{**row, "timestamp": row["timestamp"].replace("T01", "T02")} for row in second]
        write(metrics_file(tmp_path, "sft"), *first, *second, *lost)
        points = MetricsFollower(tmp_path, "sft", 3).poll()
        assert [point.step for point in points] == [49, 50, 51, 51, 52, 101, 51, 52, 101]
        assert points[-1].epoch == 2.02

    def test_sft_steps_that_are_done_again_within_an_epoch_keep_their_numbers(self, tmp_path: Path) -> None:
        again = [sft_row(step, timestamp=f"2026-01-01T01:00:{step % 60:02}.5") for step in (60, 61)]
        write(metrics_file(tmp_path, "sft"), sft_row(61), *again)
        assert [point.step for point in MetricsFollower(tmp_path, "sft", 3).poll()] == [61, 60, 61]

    def test_sft_memory_is_left_out_because_it_is_no_peak(self, tmp_path: Path) -> None:
        write(metrics_file(tmp_path, "sft"), sft_row(1))
        assert MetricsFollower(tmp_path, "sft", 1).poll()[0].memory_bytes is None

    def test_osft_rows_become_points_with_peak_memory_in_bytes(self, tmp_path: Path) -> None:
        write(metrics_file(tmp_path, "osft"), osft_row(20, 1.5))
        assert MetricsFollower(tmp_path, "osft", 2).poll() == [
            Point(20, 0.5, 80, 1.5, 5e-6, 0.9, None, 2000, 450.0, 1_500_000_000, 160)
        ]

    def test_osft_repeats_an_evaluation_in_every_row_and_it_counts_once(self, tmp_path: Path) -> None:
        write(
            metrics_file(tmp_path, "osft"),
            osft_row(1),
            osft_row(2, val_loss=1.5, val_num_batches=4),
            osft_row(3, val_loss=1.5),
            osft_row(4, val_loss=1.5, val_num_batches=4),
        )
        points = MetricsFollower(tmp_path, "osft", 1).poll()
        assert [(point.step, point.eval_loss) for point in points if point.eval_loss] == [(2, 1.5), (4, 1.5)]

    def test_osft_evaluation_at_an_epochs_end_is_placed_there(self, tmp_path: Path) -> None:
        write(metrics_file(tmp_path, "osft"), osft_row(40), osft_row(41, val_loss=1.25), osft_row(42, val_loss=1.25))
        points = MetricsFollower(tmp_path, "osft", 2).poll()
        assert [point for point in points if point.eval_loss] == [Point(40, 1.0, eval_loss=1.25)]

    def test_osft_evaluation_restored_by_a_resume_is_no_new_one(self, tmp_path: Path) -> None:
        write(metrics_file(tmp_path, "osft"), osft_row(41, val_loss=1.25), osft_row(42, val_loss=1.25))
        assert all(point.eval_loss is None for point in MetricsFollower(tmp_path, "osft", 2).poll())

    def test_epoch_stays_inside_the_one_named_when_epochs_differ_in_length(self, tmp_path: Path) -> None:
        write(metrics_file(tmp_path, "sft"), sft_row(51, epoch=0), sft_row(52, epoch=1, num_epoch_steps=53))
        assert [point.epoch for point in MetricsFollower(tmp_path, "sft", 2).poll()] == [1.0, 1.0]

    def test_rows_written_at_once_in_any_order_are_put_right(self, tmp_path: Path) -> None:
        rows = [osft_row(step) for step in range(1, 51)]
        random.Random(3).shuffle(rows)
        write(metrics_file(tmp_path, "osft"), *rows)
        assert [point.step for point in MetricsFollower(tmp_path, "osft", 2).poll()] == list(range(1, 51))

    def test_a_row_that_comes_after_later_ones_were_given_is_no_resume(self, tmp_path: Path) -> None:
        follower = MetricsFollower(tmp_path, "osft", 2)
        write(metrics_file(tmp_path, "osft"), osft_row(1), osft_row(3))
        assert len(follower.poll()) == 2
        write(metrics_file(tmp_path, "osft"), osft_row(2), osft_row(4))
        assert [point.step for point in follower.poll()] == [4]

    @pytest.mark.parametrize("stamp", ["2026-01-01T00:09:00.5", "2025-12-31T23:00:00.5"], ids=["later", "clock set"])
    def test_a_step_done_again_comes_again(self, tmp_path: Path, stamp: str) -> None:
        write(metrics_file(tmp_path, "osft"), osft_row(1), osft_row(2), osft_row(2, 3.0, timestamp=stamp))
        points = MetricsFollower(tmp_path, "osft", 2).poll()
        assert [(point.step, point.loss) for point in points] == [(1, 1.0), (2, 1.0), (2, 3.0)]

    @pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
    def test_loss_and_gradient_that_are_not_finite_are_told(self, tmp_path: Path, value: float) -> None:
        write(metrics_file(tmp_path, "lora_sft"), lora_row(1, value), lora_row(2, grad_norm=value), lora_row(3))
        points = MetricsFollower(tmp_path, "lora_sft", 1).poll()
        assert [point.finite for point in points] == [False, False, True]


class TestFollowing:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return metrics_file(tmp_path, "lora_sft")

    @pytest.fixture
    def follower(self, tmp_path: Path) -> MetricsFollower:
        return MetricsFollower(tmp_path, "lora_sft", 3)

    def test_a_file_that_is_not_there_yet_gives_nothing(self, path: Path, follower: MetricsFollower) -> None:
        assert follower.poll() == []
        write(path, lora_row(1))
        assert [point.step for point in follower.poll()] == [1]

    def test_only_new_rows_are_given(self, path: Path, follower: MetricsFollower) -> None:
        write(path, lora_row(1), lora_row(2))
        assert len(follower.poll()) == 2
        assert follower.poll() == []
        write(path, lora_row(3))
        assert [point.step for point in follower.poll()] == [3]

    def test_a_half_written_line_waits_for_its_end(self, path: Path, follower: MetricsFollower) -> None:
        line = json.dumps(lora_row(7)) + "\n"
        seen = []
        for byte in line:
            with path.open("a") as file:
                file.write(byte)
            seen.append(len(follower.poll()))
        assert seen == [0] * (len(line) - 1) + [1]
        assert follower.bad_lines == 0

    def test_a_truncated_file_starts_anew(self, path: Path, follower: MetricsFollower) -> None:
        write(path, *(lora_row(step) for step in range(1, 6)))
        follower.poll()
        path.write_text("")
        write(path, lora_row(1, 9.0))
        assert [(point.step, point.loss) for point in follower.poll()] == [(1, 9.0)]

    def test_a_longer_file_in_its_place_starts_anew(self, path: Path, follower: MetricsFollower) -> None:
        write(path, lora_row(1), lora_row(2))
        follower.poll()
        path.unlink()
        write(path, *(lora_row(step, 5.0) for step in range(1, 9)))
        assert [point.step for point in follower.poll()] == list(range(1, 9))

    def test_the_same_file_copied_back_goes_on(self, path: Path, follower: MetricsFollower) -> None:
        write(path, lora_row(1), lora_row(2))
        follower.poll()
        copy = path.with_suffix(".copy")
        copy.write_bytes(path.read_bytes())
        os.replace(copy, path)
        write(path, lora_row(3))
        assert [point.step for point in follower.poll()] == [3]

    @pytest.mark.parametrize(
        "line", [b"not json", b"[1, 2]", b"\xff\xfe\x00", b"{'step': 1}", b"[" * 100_000, b'{"step": 1'], ids=repr
    )
    def test_a_bad_line_is_counted_and_the_next_is_read(
        self, path: Path, follower: MetricsFollower, line: bytes
    ) -> None:
        path.write_bytes(line + b"\n\n")
        write(path, lora_row(2))
        assert [point.step for point in follower.poll()] == [2]
        assert follower.bad_lines == 1

    @pytest.mark.parametrize(
        "row",
        [{}, {"step": None, "loss": 1}, {"step": NAN, "loss": 1}, {"step": 1, "loss": "high"}, {"step": [], "loss": 1}],
    )
    def test_a_row_without_a_step_or_a_loss_is_no_point(
        self, path: Path, follower: MetricsFollower, row: dict[str, Any]
    ) -> None:
        write(path, row)
        assert follower.poll() == []

    def test_memory_does_not_grow_with_the_file(self, path: Path, follower: MetricsFollower) -> None:
        with path.open("w") as file:
            file.writelines(json.dumps(lora_row(step, padding="x" * 1000)) + "\n" for step in range(8000))
        tracemalloc.start()
        count = sum(1 for _ in follower.points())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 8000
        assert peak < 5_000_000 < path.stat().st_size

    def test_a_line_without_end_is_given_up(self, path: Path, follower: MetricsFollower) -> None:
        path.write_bytes(b"x" * 3_000_000 + b"\n")
        write(path, lora_row(1))
        assert [point.step for point in follower.poll()] == [1]
        assert follower.bad_lines >= 1


class TestSeries:
    def test_last_values_are_the_last_and_best_the_lowest(self) -> None:
        series = Series(
            [
                Point(1, 0.5, 4, 3.0, 1e-4, 1.0, tokens=10),
                Point(2, 1.0, 4, 1.0, 2e-4, 2.0, tokens=20),
                Point(2, 1.0, eval_loss=1.5),
                Point(3, 1.5, 4, 2.0, 3e-4, 3.0, tokens=30, memory_bytes=9),
                Point(4, 2.0, 4, 1.25, 4e-4, 4.0, tokens=40, memory_bytes=7),
                Point(4, 2.0, eval_loss=1.75),
            ]
        )
        assert series.summary() == {
            "loss": 1.25,
            "best_loss": 1.0,
            "best_step": 2,
            "eval_loss": 1.75,
            "best_eval_loss": 1.5,
            "best_eval_step": 2,
            "learning_rate": 4e-4,
            "grad_norm": 4.0,
            "epoch": 2.0,
            "steps": 4,
            "total_steps": 4,
            "tokens": 40,
            "tokens_per_second": None,
            "samples": None,
            "peak_gpu_memory_bytes": 9,
            "non_finite_steps": 0,
            "first_non_finite_step": None,
            "not_finite": [],
        }

    def test_the_rate_is_that_of_all_steps_but_the_first(self) -> None:
        rates = [1.0, 100.0, 50.0]
        points = [Point(n + 1, loss=1.0, tokens=100 * (n + 1), tokens_per_second=rate) for n, rate in enumerate(rates)]
        assert Series(points).summary()["tokens_per_second"] == pytest.approx(200 / 3)

    def test_an_empty_series_has_a_summary(self) -> None:
        summary = Series().summary()
        assert summary["steps"] == 0
        assert summary["loss"] is None

    def test_values_that_are_not_finite_become_none_and_are_flagged(self) -> None:
        series = Series(
            [
                Point(1, loss=2.0),
                Point(2, loss=NAN, finite=False),
                Point(3, loss=1.0, grad_norm=math.inf, finite=False),
                Point(4, loss=NAN, grad_norm=NAN, finite=False),
            ]
        )
        summary = series.summary()
        json.dumps(summary, allow_nan=False)
        assert summary["loss"] is None
        assert summary["not_finite"] == ["loss", "grad_norm"]
        assert (summary["non_finite_steps"], summary["first_non_finite_step"]) == (3, 2)
        assert (summary["best_loss"], summary["best_step"], summary["steps"]) == (1.0, 3, 4)

    def test_an_evaluation_that_is_not_finite_is_flagged_and_is_no_bad_step(self) -> None:
        summary = Series([Point(1, loss=1.0), Point(1, eval_loss=NAN)]).summary()
        assert summary["eval_loss"] is None
        assert summary["not_finite"] == ["eval_loss"]
        assert summary["non_finite_steps"] == 0

    def test_later_rows_win_when_a_resume_does_steps_again(self) -> None:
        series = Series(Point(step, loss=5.0 - step, finite=step != 4) for step in range(1, 5))
        series.add(Point(4, eval_loss=0.5))
        for step, loss in ((3, 7.0), (4, 8.0)):
            series.add(Point(step, loss=loss))
        assert series.curve() == [[1, 4.0], [2, 3.0], [3, 7.0], [4, 8.0]]
        summary = series.summary()
        assert (summary["best_loss"], summary["best_step"]) == (3.0, 2)
        assert summary["best_eval_loss"] is None
        assert summary["eval_loss"] is None
        assert summary["non_finite_steps"] == 0

    def test_a_rerun_in_the_same_file_replaces_everything(self) -> None:
        series = Series([*(Point(step, loss=0.1) for step in range(1, 100)), Point(1, loss=2.0)])
        assert series.curve() == [[1, 2.0]]
        assert series.summary()["steps"] == 1

    def test_a_resume_cuts_the_bad_steps_short(self) -> None:
        series = Series(Point(step, loss=NAN, finite=False) for step in range(11, 21))
        series.add(Point(15, loss=1.0))
        assert series.summary()["non_finite_steps"] == 4

    def test_a_thinned_curve_can_be_cut_and_goes_on(self) -> None:
        curve = Curve(capacity=16)
        for step in range(1000):
            curve.add(step, 1000.0 - step)
        curve.rewind(500)
        assert curve.best == curve.last
        assert curve.last is not None
        assert curve.last[0] < 500
        curve.add(500, 0.5)
        assert curve.best == (500, 0.5)
        steps = [step for step, _ in curve.samples()]
        assert steps == sorted(set(steps))

    def test_bad_steps_without_end_take_no_memory(self) -> None:
        series = Series(Point(step, loss=NAN if step % 2 else 1.0, finite=step % 2 == 0) for step in range(10_000))
        assert len(series.non_finite) <= 1024
        assert series.summary()["non_finite_steps"] == 5000


class TestCurve:
    @staticmethod
    def noisy(count: int) -> list[Point]:
        random.seed(1)
        return [Point(step, loss=2 + random.random()) for step in range(1, count + 1)]

    def test_few_points_are_all_kept(self) -> None:
        points = self.noisy(100)
        assert reduce_curve(points) == [[point.step, pytest.approx(point.loss, rel=1e-5)] for point in points]

    @pytest.mark.parametrize("limit", [4, 5, 10, 37, 100])
    @pytest.mark.parametrize("count", [101, 1000, 9999])
    def test_first_last_minimum_and_spikes_are_kept(self, count: int, limit: int) -> None:
        points = self.noisy(count)
        points[count // 3] = Point(count // 3 + 1, loss=50.0)
        points[count // 2] = Point(count // 2 + 1, loss=0.25)
        curve = reduce_curve(points, limit)
        assert len(curve) <= limit
        assert curve[0][0] == 1
        assert curve[-1][0] == count
        assert [count // 3 + 1, 50.0] in curve
        assert [count // 2 + 1, 0.25] in curve
        assert curve == sorted(curve)

    def test_several_spikes_are_all_kept(self) -> None:
        points = self.noisy(5000)
        spikes = range(100, 5000, 700)
        for step in spikes:
            points[step - 1] = Point(step, loss=20.0 + step)
        kept = {step for step, _ in reduce_curve(points)}
        assert kept.issuperset(spikes)

    @pytest.mark.parametrize("limit", [0, 1, 2, 3])
    def test_tiny_limits_keep_the_end_first(self, limit: int) -> None:
        curve = reduce_curve(self.noisy(50), limit)
        assert len(curve) == limit
        assert limit == 0 or curve[-1][0] == 50

    def test_values_that_are_not_finite_are_left_out(self) -> None:
        points = [Point(1, loss=1.0), Point(2, loss=NAN, finite=False), Point(3, eval_loss=1.0), Point(4, loss=2.0)]
        assert reduce_curve(points) == [[1, 1.0], [4, 2.0]]


class TestProgress:
    def test_the_line_says_everything_that_is_known(self) -> None:
        progress = Progress(epochs=3)
        progress.update([Point(110, loss=2.0)], 100.0)
        progress.update([Point(120, 0.9, 400, 1.234, 1.8e-4, tokens_per_second=512.3)], 106.8)
        line = progress_line(progress.figures(memory_bytes=2_040_109_466))
        assert line == (
            "step 120/400 (30 %)  epoch 0.9/3  loss 1.234  lr 1.8e-04  512 tokens/s  memory 1.9 GiB  ETA 3 min 10 s"
        )

    def test_the_figures_are_the_same_for_programs(self) -> None:
        progress = Progress(epochs=2)
        progress.update([Point(1, loss=2.0, total_steps=11, tokens=1000)], 10.0)
        progress.update([Point(3, 0.5, 11, 1.5, 1e-4, tokens=5000, memory_bytes=77)], 14.0)
        assert progress.figures(memory_bytes=5) == {
            "step": 3,
            "total_steps": 11,
            "epoch": 0.5,
            "epochs": 2,
            "loss": 1.5,
            "learning_rate": 1e-4,
            "tokens_per_second": 1000.0,
            "memory_bytes": 77,
            "eta_seconds": 16.0,
            "finite": True,
        }

    def test_nothing_is_estimated_before_the_second_look(self) -> None:
        progress = Progress()
        assert progress_line(progress.figures()) == "step 0"
        progress.update([Point(1, loss=2.0, total_steps=9), Point(2, loss=2.0, total_steps=9)], 5.0)
        assert progress.figures()["eta_seconds"] is None
        progress.update([], 9.0)
        assert progress.figures()["eta_seconds"] is None

    def test_a_slow_start_and_a_pause_do_not_move_the_estimate(self) -> None:
        progress, now = Progress(), 0.0
        for step in range(1, 31):
            now += 60.0 if step in (2, 20) else 2.0
            progress.update([Point(step, loss=1.0, total_steps=130)], now)
        assert progress.figures()["eta_seconds"] == pytest.approx(200.0)

    def test_looks_that_are_rarer_than_steps_do_not_bend_the_rate(self) -> None:
        progress = Progress()
        for look in range(60):
            progress.update([Point(int(look / 0.7) + 1, loss=1.0, total_steps=1000)], float(look))
        step = progress.figures()["step"]
        assert progress.figures()["eta_seconds"] == pytest.approx((1000 - step) * 0.7, rel=0.05)

    def test_the_overall_rate_is_that_from_the_first_look_to_the_last(self) -> None:
        progress = Progress()
        assert progress.overall_tokens_per_second() is None
        for look in range(100):
            progress.update([Point(look + 1, loss=1.0, tokens=100 * (look + 1))], 10.0 + look)
        progress.update([Point(101, loss=1.0, tokens=10_100)], 210.0)
        assert progress.overall_tokens_per_second() == 50.0

    def test_a_resume_measures_anew(self) -> None:
        progress = Progress()
        progress.update([Point(90, loss=1.0, total_steps=100)], 0.0)
        progress.update([Point(50, loss=1.0, total_steps=100)], 1.0)
        assert progress.figures()["eta_seconds"] is None
        assert progress.figures()["step"] == 50

    def test_a_loss_that_is_not_finite_is_said_and_is_none_in_json(self) -> None:
        progress = Progress()
        progress.update([Point(3, loss=NAN, total_steps=10, finite=False)], 0.0)
        figures = progress.figures()
        json.dumps(figures, allow_nan=False)
        assert progress_line(figures) == "step 3/10 (30 %)  loss or gradient NOT FINITE"

    def test_evaluations_do_not_hide_the_last_step(self) -> None:
        progress = Progress()
        progress.update([Point(3, loss=1.5, total_steps=10), Point(3, eval_loss=2.0)], 0.0)
        assert progress.figures()["loss"] == 1.5

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.2, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (190, "3 min 10 s"),
            (3600, "1 h"),
            (8000, "2 h 13 min"),
            (200_000, "2 d 7 h"),
        ],
    )
    def test_spans_of_time_read_well(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


def test_a_million_steps_are_kept_in_little_memory_and_time() -> None:
    series = Series()
    start = time.process_time()
    for step in range(1, 1_000_001):
        series.add(Point(step, step / 1e5, 1_000_000, 3.0 - step * 1e-6 if step != 654_321 else 0.125, 1e-4))
    assert time.process_time() - start < 20
    assert len(series.loss.buckets) <= 2048
    assert series.summary()["best_step"] == 654_321
    curve = series.curve()
    assert [654_321, 0.125] in curve
    assert [curve[0][0], curve[-1][0]] == [1, 1_000_000]
    assert len(curve) <= 100
