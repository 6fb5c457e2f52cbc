"""TRL's trainer with what the CUDA backends of full fine-tuning have beside it: counts of rows and tokens, files."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import SFTTrainer


class CountingTrainer(SFTTrainer):
    """TRL's trainer, which also counts what all processes read together."""

    samples_seen = 0
    """Since the training began."""
    step: dict[str, int]
    """Of the current step: ``rows``, ``tokens`` with padding, ``trained_tokens`` and ``micro_batches``."""
    step_began = 0.0

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """Read the micro-batches of one step."""
        self.step_began = time.monotonic()
        batches, items = super().get_batch_samples(*arguments, **keywords)
        mine = [
            (len(batch["labels"]), batch["labels"].numel(), int((batch["labels"][:, 1:] != -100).sum()))
            for batch in batches
        ]
        rows, tokens, trained = self.accelerator.reduce(torch.tensor(mine).sum(dim=0), reduction="sum").tolist()
        self.step = {"rows": rows, "tokens": tokens, "trained_tokens": trained, "micro_batches": len(batches)}
        self.samples_seen += rows
        return batches, items

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Weight decay is for all weights, as on a GPU; transformers leaves out biases and norms."""
        return [name for name, _ in model.named_parameters()]

    def save_whole(self, target: Path) -> None:
        """Save the model as anybody may load it, and the tokenizer.

        :param target: directory.
        """
        self.model.save_pretrained(target)
        self.processing_class.save_pretrained(target)


class TrainingFiles(TrainerCallback):
    """Writes metrics and models where and as the CUDA backend of an algorithm does.

    :param trainer: what it follows.
    :param metrics_file: name of the metrics file in the output directory.
    :param save_samples: samples from one model to the next; 0 for none. instructlab-training saves only where the
        samples seen are a multiple of it, which batches may step over; here the end of such a batch counts.
    :param at_epoch: save a model at the end of each epoch.
    :param at_end: save a model at the end of the training.
    :param state_at_epoch: save with each epoch all that a training needs to go on.
    :param last_only: keep one model, ``last_epoch``.
    :param limit: how many models stay; ``None`` for all.
    """

    def __init__(
        self,
        trainer: CountingTrainer,
        *,
        metrics_file: str,
        save_samples: int = 0,
        at_epoch: bool = False,
        at_end: bool = False,
        state_at_epoch: bool = False,
        last_only: bool = False,
        limit: int | None = None,
    ) -> None:
        self.trainer, self._directory = trainer, Path(trainer.args.output_dir)
        self._metrics = self._directory / metrics_file
        self._save_samples, self._at_epoch, self._at_end = save_samples, at_epoch, at_end
        self._state_at_epoch, self._last_only, self._limit = state_at_epoch, last_only, limit
        self._saved_at = 0

    def row(self, epoch: int, epoch_steps: int, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics of one step by the backend's names.

        :param epoch: from 0.
        :param epoch_steps: steps of one epoch.
        :param step: from 1.
        :param logs: of transformers.
        :raises NotImplementedError: the subclass lacks it.
        """
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count on from where a training goes on."""
        epochs, steps = divmod(state.global_step, self._epoch_steps(args, state))
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.trainer.samples_seen = self._saved_at = epochs * len(self.trainer.train_dataset) + steps * batch

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append the metrics of one step."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        epoch_steps = self._epoch_steps(args, state)
        row = self.row((state.global_step - 1) // epoch_steps, epoch_steps, state.global_step, logs)
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save a model where enough samples have been seen since the last one."""
        seen, size = self.trainer.samples_seen, self.trainer.step["rows"]
        if self._save_samples > 0 and seen // self._save_samples > (seen - size) // self._save_samples:
            self._save()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the model of an epoch, which one that was stopped within it is not."""
        if state.global_step % self._epoch_steps(args, state):
            return
        if self._at_epoch:
            self._save()
            control.should_save = control.should_save or self._state_at_epoch

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the last model."""
        if self._at_end and state.global_step >= state.max_steps:
            self._save()

    @staticmethod
    def _epoch_steps(args: Any, state: Any) -> int:
        return int(state.max_steps) // int(args.num_train_epochs)

    def _save(self) -> None:
        if self._saved_at == (seen := self.trainer.samples_seen):
            return
        self._saved_at = seen
        if self.trainer.is_world_process_zero():
            target = self._directory / "hf_format" / ("last_epoch" if self._last_only else f"samples_{seen}")
            self.trainer.save_whole(target)
            self._forget_all_but_the_last(target.parent)
        self.trainer.accelerator.wait_for_everyone()

    def _forget_all_but_the_last(self, models: Path) -> None:
        saved = sorted(models.glob("samples_*"), key=lambda path: int(path.name.removeprefix("samples_")))
        for model in saved[: -self._limit] if self._limit else []:
            shutil.rmtree(model, ignore_errors=True)
