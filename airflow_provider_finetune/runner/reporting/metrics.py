"""The metrics files of the three training-hub backends, read while they grow, as one kind of :class:`Point`.

Each backend appends one JSON object a line to a file of its own in the checkpoint directory, under names of its own.
This module knows those names and their quirks (seen in training-hub 0.11 and the backends it installs); everything
after it sees points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

Algorithm = Literal["osft", "sft", "lora_sft"]

_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 256
_DISORDER_ROWS = 256
_DISORDER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Point:
    """What a backend said about one step; ``None`` where it said nothing.

    * ``step``: optimizer steps done; ``total_steps``: planned for the whole training
    * ``epoch``: passes over the data, with fraction
    * ``loss``, ``learning_rate``, ``grad_norm``: of this step, as logged; may be NaN or infinite
    * ``eval_loss``: present on the points of an evaluation only
    * ``tokens``: processed since the training began, padding included; a step done again counts again
    * ``tokens_per_second``: the backend's own figure over all processes
    * ``memory_bytes``: peak GPU memory, only where the backend measures a peak
    * ``samples``: rows of the data processed since the training began
    * ``finite``: neither ``loss`` nor ``grad_norm`` is NaN or infinite
    """

    step: int
    epoch: float | None = None
    total_steps: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    eval_loss: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    samples: int | None = None
    finite: bool = True


@dataclass(frozen=True)
class _Format:
    """File and key names of one backend; an empty name is a thing that it does not write."""

    file: str
    loss: str
    learning_rate: str
    grad_norm: str
    eval_loss: str
    steps_per_epoch: str = ""
    step_tokens: str = ""
    samples: str = ""


_FORMATS: dict[str, _Format] = {
    # num_tokens_rank0 is the sum over all ranks in spite of its name.
    "sft": _Format(
        "training_params_and_metrics_global0.jsonl",
        loss="avg_loss",
        learning_rate="lr",
        grad_norm="gradnorm",
        eval_loss="val_loss",
        steps_per_epoch="num_epoch_steps",
        step_tokens="num_tokens_rank0",
        samples="samples_seen",
    ),
    # total_tokens_accumulated counts only tokens with a loss, so the tokens are summed from each step's own.
    "osft": _Format(
        "training_metrics_0.jsonl",
        loss="loss",
        learning_rate="lr",
        grad_norm="grad_norm",
        eval_loss="val_loss",
        steps_per_epoch="steps_per_epoch",
        step_tokens="num_total_tokens",
        samples="total_samples_accumulated",
    ),
    "lora_sft": _Format(
        "training_metrics.jsonl",
        loss="loss",
        learning_rate="learning_rate",
        grad_norm="grad_norm",
        eval_loss="eval_loss",
    ),
}


def metrics_file(checkpoint_dir: str | Path, algorithm: Algorithm) -> Path:
    """Where the backend of an algorithm writes its metrics.

    :param checkpoint_dir: training-hub's ``ckpt_output_dir``
    :param algorithm: the algorithm that runs
    """
    return Path(checkpoint_dir) / _FORMATS[algorithm].file


class MetricsFollower:
    """Reads a metrics file while the backend appends to it, each byte once.

    Memory is bounded by one chunk of the file, however long it grows. A file that is not there yet or cannot be read
    gives nothing: following must never end a training. A file that was truncated or replaced is read from its
    beginning again; a :class:`~airflow_provider_finetune.runner.reporting.series.Series` lets the later rows win.

    :param checkpoint_dir: training-hub's ``ckpt_output_dir``
    :param algorithm: decides file and key names
    :param epochs: passes over the data, for the total of the backends that write only the steps of one epoch
    """

    def __init__(self, checkpoint_dir: str | Path, algorithm: Algorithm, epochs: int) -> None:
        self.path = metrics_file(checkpoint_dir, algorithm)
        self.bad_lines = 0
        """Complete lines so far that are not a JSON object."""
        self._format = _FORMATS[algorithm]
        self._epochs = epochs
        self._restart()

    def poll(self) -> list[Point]:
        """Points of the complete lines that are new since the last call."""
        return list(self.points())

    def points(self) -> Iterator[Point]:
        """As :meth:`poll`, one at a time, for a file too long for a list."""
        for row in self._in_order(self._rows()):
            yield from self._points_of(row)

    def _restart(self) -> None:
        self._offset = 0
        self._head = b""
        self._tail = b""
        self._tokens = 0
        self._logged_tokens = 0
        self._eval_loss: float | None = None
        self._epoch: float | None = None
        self._step: int | None = None
        self._last_written: int | None = None
        self._before = 0
        self._latest_stamp = -math.inf

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
                # Inode numbers are reused at once by some file systems, so the first bytes say whether it is the same.
                if file.seek(0, 2) < self._offset or not head.startswith(self._head):
                    self._restart()
                self._head = head
                file.seek(self._offset)
                while chunk := file.read(_CHUNK_BYTES):
                    self._offset += len(chunk)
                    *lines, self._tail = (self._tail + chunk).split(b"\n")
                    if len(self._tail) > _CHUNK_BYTES:
                        lines.append(self._tail)
                        self._tail = b""
                    for line in lines:
                        if (row := self._parse(line)) is not None:
                            yield row
        except OSError:
            return

    def _in_order(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Puts rows right that were written in the wrong order.

        SFT and OSFT write each row from a coroutine of its own, so rows that are written at about the same time, such
        as after the storage was stuck, come in any order. Their time stamps are taken in order, and tell such a row
        from a step that is done again after a resume. A difference of more than a minute is a clock that was set.
        """
        window: list[tuple[float, dict[str, Any]]] = []
        for row in rows:
            stamp = _time_stamp(row)
            if stamp is None:
                yield row
                continue
            if 0 < self._latest_stamp - stamp < _DISORDER_SECONDS:
                continue  # Later steps are out already, and the row would look like a resume.
            place = len(window)
            while place and 0 < window[place - 1][0] - stamp < _DISORDER_SECONDS:
                place -= 1
            window.insert(place, (stamp, row))
            if len(window) > _DISORDER_ROWS:
                self._latest_stamp, first = window.pop(0)
                yield first
        for self._latest_stamp, row in window:
            yield row

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            self.bad_lines += 1
            return None
        return row

    def _points_of(self, row: dict[str, Any]) -> Iterator[Point]:
        keys = self._format
        step = _whole(row, "step")
        loss = _number(row, keys.loss)
        eval_loss = _number(row, keys.eval_loss)
        # Rows with neither are dumps of the parameters, or the summary that Trainer writes at the end.
        if step is None or (loss is None and eval_loss is None):
            return
        if loss is not None:
            self._look_for_restart(row, step)
        step += self._before
        if loss is not None and eval_loss is not None:
            # OSFT repeats its last evaluation in every row; one made at the end of an epoch has no row of its own and
            # shows first in the next step's. After a resume the row shows an evaluation of long ago.
            fresh = "val_num_batches" in row
            resumed = self._step is None or step <= self._step
            if not fresh and not resumed and not _same(eval_loss, self._eval_loss):
                yield Point(step - 1, self._epoch, eval_loss=eval_loss)
            self._eval_loss = eval_loss
            eval_loss = eval_loss if fresh else None
        if loss is not None:
            yield self._training_point(row, step, loss)
            self._step = step
        if eval_loss is not None:
            epoch = self._epoch if keys.steps_per_epoch else _epoch(row)
            yield Point(step, epoch, eval_loss=eval_loss)

    def _look_for_restart(self, row: dict[str, Any], step: int) -> None:
        """SFT that goes on from between two epochs counts its steps from 1 again."""
        if self._last_written is not None and step <= self._last_written:
            before = (_whole(row, "epoch") or 0) * (_whole(row, self._format.steps_per_epoch) or 0)
            self._before = before if step <= before else 0
        self._last_written = step

    def _training_point(self, row: dict[str, Any], step: int, loss: float) -> Point:
        keys = self._format
        per_epoch = _whole(row, keys.steps_per_epoch)
        self._epoch = _epoch(row)
        if per_epoch and self._epoch is not None:
            # These backends number epochs from 0. The steps of an epoch differ a little from one to the next, since
            # batches are packed by length, so the fraction is held inside the epoch that the row names.
            self._epoch = min(max(step / per_epoch, self._epoch), self._epoch + 1)
        grad_norm = _number(row, keys.grad_norm)
        peak_gb = _number(row, "peak_memory_usage_GB")
        return Point(
            step,
            self._epoch,
            per_epoch * self._epochs if per_epoch else _whole(row, "max_steps"),
            loss,
            _number(row, keys.learning_rate),
            grad_norm,
            tokens=self._count_tokens(row),
            tokens_per_second=_tokens_per_second(row),
            memory_bytes=round(peak_gb * 1e9) if peak_gb else None,
            samples=_whole(row, keys.samples),
            finite=math.isfinite(loss) and (grad_norm is None or math.isfinite(grad_norm)),
        )

    def _count_tokens(self, row: dict[str, Any]) -> int | None:
        if self._format.step_tokens:
            tokens = _whole(row, self._format.step_tokens)
            self._tokens += tokens or 0
            return self._tokens if self._tokens else None
        logged = _whole(row, "num_tokens")
        if logged is None:
            return None
        # TRL counts from 0 again after a resume.
        self._tokens += logged - self._logged_tokens if logged >= self._logged_tokens else logged
        self._logged_tokens = logged
        return self._tokens


def _time_stamp(row: dict[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(row["timestamp"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def _tokens_per_second(row: dict[str, Any]) -> float | None:
    own = _number(row, "tokens_per_second")
    if own is not None:
        return own if math.isfinite(own) else None
    # SFT gives samples a second; its own count of the step's samples and tokens turns that into tokens a second.
    samples_per_second, samples = _number(row, "overall_throughput"), _whole(row, "batch_size")
    tokens = _whole(row, "num_tokens_rank0")
    if samples_per_second is None or not math.isfinite(samples_per_second) or not samples or tokens is None:
        return None
    return samples_per_second * tokens / samples


def _number(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _epoch(row: dict[str, Any]) -> float | None:
    value = _number(row, "epoch")
    return value if value is not None and math.isfinite(value) else None


def _whole(row: dict[str, Any], key: str) -> int | None:
    value = _number(row, key)
    return int(value) if value is not None and math.isfinite(value) else None


def _same(a: float, b: float | None) -> bool:
    return a == b or (b is not None and math.isnan(a) and math.isnan(b))
