"""Orthogonal subspace fine-tuning for machines without CUDA, behind training-hub's own ``osft``.

The model is mini-trainer's own: each targeted matrix is parted by its singular values, the directions of the largest
are frozen, and gradients and weights of the others are held orthogonal to them. Order of the rows, loss, optimizer,
schedule, metrics file and saved models are those of mini-trainer; the loop around them is that of transformers.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from training_hub import AlgorithmRegistry
from training_hub.algorithms import Backend

from airflow_provider_finetune.runner.backends import trl
from airflow_provider_finetune.runner.backends.counting import CountingTrainer, TrainingFiles

METRICS_FILE = "training_metrics_0.jsonl"


class OSFTBackend(Backend):
    """Backend ``trl`` of ``osft``. Each keyword that it honours is read from ``params`` by its literal name."""

    def execute_training(self, algorithm_params: dict[str, Any]) -> dict[str, Any]:
        """Train on rows of ``input_ids`` and ``labels``, and return model, tokenizer and trainer.

        :param algorithm_params: training-hub's keywords of ``osft``; ``data_path`` is a parquet file.
        """
        from datasets import Dataset
        from transformers import AutoTokenizer, set_seed

        params = algorithm_params
        trust = bool(params.get("trust_remote_code"))
        set_seed(_seed(params))
        model = load(
            params["model_path"],
            params["unfreeze_rank_ratio"],
            params["target_patterns"],
            trust_remote_code=trust,
        )
        trainer = OSFTTrainer(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(params["model_path"], trust_remote_code=trust),
            args=training_arguments(params),
            train_dataset=Dataset.from_parquet(params["data_path"]),
        )
        files = MiniTrainerFiles(
            trainer,
            metrics_file=METRICS_FILE,
            at_epoch=bool(params.get("checkpoint_at_epoch")),
            at_end=params.get("save_final_checkpoint") is not False,
            limit=params.get("save_total_limit"),
        )
        trl.train(trainer, files, params.get("callbacks"), going_on=params.get("on_demand_checkpointing", False))
        return {"model": model, "tokenizer": trainer.processing_class, "trainer": trainer}


def load(model: str, unfreeze_rank_ratio: float, target_patterns: list[str], *, trust_remote_code: bool) -> Any:
    """Return the model with its targeted matrices parted, in float32.

    :param model: directory.
    :param unfreeze_rank_ratio: share of each matrix's singular directions that is trained, those of the smallest
        values, between 0 and 1.
    :param target_patterns: parts of the names of the matrices.
    :param trust_remote_code: run code that the model brings along.
    """
    from mini_trainer.osft_utils import create_osft_model_class

    parted = create_osft_model_class(_class_of(model, trust_remote_code)).from_pretrained(
        model,
        initialize_osft=True,
        rank_ratio=1.0 - unfreeze_rank_ratio,
        target_patterns=target_patterns,
        upcast_dtype=torch.float32,
        output_dtype=torch.float32,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
    )
    # The name that a saved model gives as its architecture.
    parted.__class__.__name__ = parted.__class__.__name__.removesuffix("WithOSFT")
    return parted


def _class_of(model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))


def _seed(params: dict[str, Any]) -> int:
    return 42 if params.get("seed") is None else int(params["seed"])


def training_arguments(params: dict[str, Any]) -> Any:
    """Return TRL's configuration with the defaults of mini-trainer."""
    accumulation = params.get("gradient_accumulation_steps", 1)
    betas = params.get("beta1"), params.get("beta2")
    return trl.arguments(
        output_dir=params["ckpt_output_dir"],
        seed=_seed(params),
        # Rows that are too long have been dropped; none is cut.
        max_length=None,
        num_train_epochs=params.get("num_epochs") or 1,
        per_device_train_batch_size=trl.micro_batch_size(params["effective_batch_size"], accumulation),
        gradient_accumulation_steps=accumulation,
        learning_rate=params["learning_rate"],
        lr_scheduler_type=params.get("lr_scheduler") or "cosine",
        lr_scheduler_kwargs=params.get("lr_scheduler_kwargs") or {},
        warmup_steps=params.get("warmup_steps") or 0,
        weight_decay=params.get("weight_decay") or 0.0,
        adam_beta1=0.9 if betas[0] is None else betas[0],
        adam_beta2=0.95 if betas[1] is None else betas[1],
        adam_epsilon=1e-8 if params.get("eps") is None else params["eps"],
        max_grad_norm=1.0,
        logging_steps=1,
        # Models are saved by MiniTrainerFiles; what is saved beside them is to go on from, and the last is enough.
        save_strategy="no",
        save_total_limit=1,
    )


class OSFTTrainer(CountingTrainer):
    """Trains a model of :func:`load` on rows in mini-trainer's order."""

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the optimizer, each step of which stays in the subspace that is trained."""
        from mini_trainer.osft_utils import optim_wrapper

        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*arguments, **keywords)
        return optim_wrapper(optimizer, self.model) if fresh else optimizer

    def _get_train_sampler(self, *_: Any) -> Any:
        from mini_trainer.sampler import EpochSampler

        return EpochSampler(len(self.train_dataset), seed=self.args.seed)

    def save_whole(self, target: Path) -> None:
        """Save the model with its parted matrices put together again, and the tokenizer."""
        weights = self.model.prepare_state_dict_for_save(dict(self.model.state_dict()))
        self.model.save_pretrained(target, state_dict=weights)
        self.processing_class.save_pretrained(target)


class MiniTrainerFiles(TrainingFiles):
    """The metrics by the names of mini-trainer."""

    def row(self, epoch: int, epoch_steps: int, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics of one step."""
        counted, seconds = self.trainer.step, time.monotonic() - self.trainer.step_began
        return {
            "step": step,
            "epoch": epoch,
            "steps_per_epoch": epoch_steps,
            "lr": logs["learning_rate"],
            "grad_norm": trl.number(logs.get("grad_norm")),
            "loss": logs["loss"],
            "num_samples": counted["rows"],
            "num_loss_counted_tokens": counted["trained_tokens"],
            "num_total_tokens": counted["tokens"],
            "grad_accum": counted["micro_batches"],
            "time_per_batch": seconds,
            "tokens_per_second": counted["tokens"] / seconds,
            "samples_per_second": counted["rows"] / seconds,
            "total_samples_accumulated": self.trainer.samples_seen,
            "peak_memory_usage_GB": 0.0,
            "val_loss": None,
            "timestamp": datetime.now().isoformat(),
        }


def register() -> str:
    """Make the backend known to training-hub and return its name."""
    AlgorithmRegistry.register_backend("osft", trl.NAME, OSFTBackend)
    return trl.NAME
