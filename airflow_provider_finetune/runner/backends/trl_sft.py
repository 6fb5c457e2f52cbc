"""Full fine-tuning by TRL for machines without CUDA, behind training-hub's own ``sft``.

Settings, metrics file and checkpoints are those of training-hub's instructlab-training backend, less what needs a GPU.
"""

from __future__ import annotations

import json
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from training_hub import AlgorithmRegistry
from training_hub.algorithms import Backend
from transformers import TrainerCallback
from trl import SFTTrainer

from airflow_provider_finetune.runner.backends import trl

METRICS_FILE = "training_params_and_metrics_global0.jsonl"


class TRLSFTBackend(Backend):
    """Backend ``trl`` of ``sft``. Each keyword that it honours is read from ``params`` by its literal name."""

    def execute_training(self, algorithm_params: dict[str, Any]) -> dict[str, Any]:
        """Train on rows of ``input_ids`` and ``labels``, and return model, tokenizer and trainer.

        :param algorithm_params: training-hub's keywords of ``sft``; ``data_path`` is a parquet file.
        """
        from datasets import Dataset
        from transformers import set_seed

        params = algorithm_params
        set_seed(params.get("random_seed", 42))
        model, tokenizer = trl.load(params["model_path"], trust_remote_code=params.get("trust_remote_code", False))
        answers_with_cache = getattr(model.config, "use_cache", True)
        trainer = CountingTrainer(
            model=model,
            processing_class=tokenizer,
            args=training_arguments(params),
            train_dataset=Dataset.from_parquet(params["data_path"]),
        )
        # The trainer turns it off for good, which slows down whoever asks the saved model; TRL does so in each step.
        model.config.use_cache = answers_with_cache
        files = InstructLabFiles(
            trainer,
            save_samples=params.get("save_samples", 0),
            checkpoint_at_epoch=params.get("checkpoint_at_epoch", True),
            full_state=params.get("accelerate_full_state_at_epoch", True),
            keep_last_only=params.get("keep_last_checkpoint_only", False),
            limit=params.get("save_total_limit"),
        )
        for callback in (files, *trl.hub_callbacks(params.get("callbacks"))):
            trainer.add_callback(callback)
        trainer.train()
        return {"model": model, "tokenizer": tokenizer, "trainer": trainer}


def training_arguments(params: dict[str, Any]) -> Any:
    """Return TRL's configuration with the defaults of training-hub's ``sft``."""
    accumulation = params.get("gradient_accumulation_steps", 1)
    return trl.arguments(
        output_dir=params["ckpt_output_dir"],
        seed=params.get("random_seed", 42),
        # Rows that are too long have been dropped; none is cut.
        max_length=None,
        num_train_epochs=params.get("num_epochs", 1),
        per_device_train_batch_size=trl.micro_batch_size(params["effective_batch_size"], accumulation),
        gradient_accumulation_steps=accumulation,
        learning_rate=params["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=params.get("warmup_steps", 0),
        weight_decay=params.get("weight_decay", 0.0),
        adam_beta1=params.get("beta1", 0.9),
        adam_beta2=params.get("beta2", 0.95),
        adam_epsilon=params.get("eps", 1e-8),
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
    )


class CountingTrainer(SFTTrainer):
    """TRL's trainer, which also counts what all processes read together."""

    samples_seen = 0
    """Since the training began."""
    step: dict[str, int]
    """Of the current step, by instructlab-training's names."""
    step_began = 0.0

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """Read the micro-batches of one step."""
        self.step_began = time.monotonic()
        batches, items = super().get_batch_samples(*arguments, **keywords)
        mine = [
            (len(batch["labels"]), batch["labels"].numel(), int((batch["labels"][:, 1:] != -100).sum()))
            for batch in batches
        ]
        rows, tokens, counted = self.accelerator.reduce(torch.tensor(mine).sum(dim=0), reduction="sum").tolist()
        # num_tokens_rank0 is the sum over all processes in spite of its name.
        self.step = {
            "num_loss_counted_tokens": counted,
            "num_tokens_rank0": tokens,
            "batch_size": rows,
            "num_minibatches": len(batches),
        }
        self.samples_seen += rows
        return batches, items

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Weight decay is for all weights, as on a GPU; transformers leaves out biases and norms."""
        return [name for name, _ in model.named_parameters()]


class InstructLabFiles(TrainerCallback):
    """Writes metrics and checkpoints where and as instructlab-training does.

    :param trainer: what it follows.
    :param save_samples: samples from one checkpoint to the next; 0 for none. instructlab-training saves only where the
        samples seen are a multiple of it, which batches may step over; here the end of such a batch counts.
    :param checkpoint_at_epoch: save a checkpoint at the end of each epoch.
    :param full_state: save with it what a training needs to go on.
    :param keep_last_only: keep one checkpoint, ``last_epoch``.
    :param limit: how many checkpoints, and full states beside them, stay; ``None`` for all.
    """

    def __init__(
        self,
        trainer: CountingTrainer,
        *,
        save_samples: int,
        checkpoint_at_epoch: bool,
        full_state: bool,
        keep_last_only: bool,
        limit: int | None,
    ) -> None:
        self._trainer, self._directory = trainer, Path(trainer.args.output_dir)
        self._save_samples, self._checkpoint_at_epoch = save_samples, checkpoint_at_epoch
        self._full_state, self._keep_last_only = full_state, keep_last_only
        self._saved_at = 0
        self._limit = limit
        self._saved: dict[str, list[Path]] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append the metrics of one step."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        epoch_steps = state.max_steps // int(args.num_train_epochs)
        row = {
            "epoch": (state.global_step - 1) // epoch_steps,
            "step": state.global_step,
            "rank": 0,
            "overall_throughput": self._trainer.step["batch_size"] / (time.monotonic() - self._trainer.step_began),
            "lr": logs["learning_rate"],
            "cuda_mem_allocated": 0.0,
            "cuda_malloc_retries": 0,
            **self._trainer.step,
            "avg_loss": logs["loss"],
            "samples_seen": self._trainer.samples_seen,
            "gradnorm": _number(logs.get("grad_norm")),
            "total_samples": len(self._trainer.train_dataset),
            "num_epoch_steps": epoch_steps,
            "timestamp": datetime.now().isoformat(),
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save a checkpoint where enough samples have been seen since the last one."""
        seen, size = self._trainer.samples_seen, self._trainer.step["batch_size"]
        if self._save_samples > 0 and seen // self._save_samples > (seen - size) // self._save_samples:
            self._save()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the checkpoint of an epoch."""
        if self._checkpoint_at_epoch:
            self._save()
            if self._full_state:
                self._save_full_state(round(state.epoch) - 1)

    def _save(self) -> None:
        if self._saved_at == (seen := self._trainer.samples_seen):
            return
        self._saved_at = seen
        if self._trainer.is_world_process_zero():
            target = self._directory / "hf_format" / ("last_epoch" if self._keep_last_only else f"samples_{seen}")
            self._trainer.model.save_pretrained(target)
            self._trainer.processing_class.save_pretrained(target)
            self._forget_all_but_the_last(target)
        self._trainer.accelerator.wait_for_everyone()

    def _save_full_state(self, epoch: int) -> None:
        target = self._directory / "full_state" / f"epoch_{epoch}"
        self._trainer.accelerator.save_state(str(target))
        if self._trainer.is_world_process_zero():
            # transformers keeps the schedule from the accelerator.
            torch.save(self._trainer.lr_scheduler.state_dict(), target / "scheduler.bin")
            # Saved by torch in spite of its name, which instructlab-training gives it.
            metadata = {"current_epoch": epoch, "samples_seen": self._trainer.samples_seen}
            torch.save(metadata, target / "training_metadata.json")
            self._forget_all_but_the_last(target)

    def _forget_all_but_the_last(self, saved: Path) -> None:
        beside = self._saved.setdefault(saved.parent.name, [])
        if saved not in beside:
            beside.append(saved)
        while self._limit and len(beside) > self._limit:
            shutil.rmtree(beside.pop(0), ignore_errors=True)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def register() -> str:
    """Make the backend known to training-hub and return its name."""
    AlgorithmRegistry.register_backend("sft", trl.NAME, TRLSFTBackend)
    return trl.NAME
