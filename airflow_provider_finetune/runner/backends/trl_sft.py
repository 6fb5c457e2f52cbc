"""Full fine-tuning by TRL for machines without CUDA, behind training-hub's own ``sft``.

Settings, metrics file and checkpoints are those of training-hub's instructlab-training backend, less what needs a GPU.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from training_hub import AlgorithmRegistry
from training_hub.algorithms import Backend

from airflow_provider_finetune.runner.backends import trl
from airflow_provider_finetune.runner.backends.counting import CountingTrainer, TrainingFiles

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
            metrics_file=METRICS_FILE,
            save_samples=params.get("save_samples", 0),
            at_epoch=params.get("checkpoint_at_epoch", True),
            state_at_epoch=params.get("accelerate_full_state_at_epoch", True),
            last_only=params.get("keep_last_checkpoint_only", False),
            limit=params.get("save_total_limit"),
        )
        trl.train(trainer, files, params.get("callbacks"), going_on=params.get("on_demand_checkpointing", False))
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
        # Models are saved by InstructLabFiles; what is saved beside them is to go on from, and the last is enough.
        save_strategy="no",
        save_total_limit=1,
    )


class InstructLabFiles(TrainingFiles):
    """The metrics by the names of instructlab-training."""

    def row(self, epoch: int, epoch_steps: int, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics of one step."""
        counted = self.trainer.step
        return {
            "epoch": epoch,
            "step": step,
            "rank": 0,
            "overall_throughput": counted["rows"] / (time.monotonic() - self.trainer.step_began),
            "lr": logs["learning_rate"],
            "cuda_mem_allocated": 0.0,
            "cuda_malloc_retries": 0,
            "num_loss_counted_tokens": counted["trained_tokens"],
            # The sum over all processes in spite of its name.
            "num_tokens_rank0": counted["tokens"],
            "batch_size": counted["rows"],
            "num_minibatches": counted["micro_batches"],
            "avg_loss": logs["loss"],
            "samples_seen": self.trainer.samples_seen,
            "gradnorm": trl.number(logs.get("grad_norm")),
            "total_samples": len(self.trainer.train_dataset),
            "num_epoch_steps": epoch_steps,
            "timestamp": datetime.now().isoformat(),
        }


def register() -> str:
    """Make the backend known to training-hub and return its name."""
    AlgorithmRegistry.register_backend("sft", trl.NAME, TRLSFTBackend)
    return trl.NAME
