"""What training by TRL on a CPU has in common, whatever is trained.

Weights are float32, samples are padded and not packed, gradients are not checkpointed: a CPU has no use for the other.
"""

from __future__ import annotations

import os
from typing import Any

NAME = "trl"
"""The backends' name in training-hub's registry."""


def load(model: str, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return model and tokenizer.

    :param model: directory or HuggingFace id.
    :param trust_remote_code: run code that the model brings along.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype="float32", trust_remote_code=trust_remote_code)
    return weights, tokenizer


def processes() -> int:
    """How many processes train together, over all nodes: torchrun says so where there are several."""
    return int(os.environ.get("WORLD_SIZE", 1))


def micro_batch_size(effective_batch_size: int, accumulation_steps: int) -> int:
    """Return the rows that one process takes at once."""
    return max(1, effective_batch_size // (accumulation_steps * processes()))


def arguments(*, output_dir: str, seed: int, **chosen: Any) -> Any:
    """Return TRL's configuration.

    :param output_dir: training-hub's ``ckpt_output_dir``.
    :param seed: of the first weights of an adapter, of dropout and of the order of the data.
    :param chosen: further arguments of ``SFTConfig``.
    """
    from trl import SFTConfig

    return SFTConfig(
        output_dir=output_dir,
        seed=seed,
        data_seed=seed,
        use_cpu=True,
        gradient_checkpointing=False,
        # TRL would take bfloat16, in which a CPU without such instructions computes ten times slower.
        **{"bf16": False, "fp16": False, **chosen},
        # The filter would log the last finite loss in place of a NaN.
        logging_nan_inf_filter=False,
        packing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )


def train(trainer: Any, files: Any, callbacks: list[Any] | None, *, going_on: bool) -> None:
    """Train, from the newest checkpoint on where there is one and somebody wants that.

    :param trainer: of transformers.
    :param files: callback that writes metrics and models.
    :param callbacks: training-hub's keyword of that name.
    :param going_on: save a checkpoint on SIGTERM and end, as training-hub's ``enable_jit_checkpoint`` does, and go on
        from such a checkpoint.
    """
    from training_hub.adapters.unsloth import adapt_hub_callbacks
    from training_hub.callbacks import TrainingHubControl
    from training_hub.jit_checkpoint import JITCheckpointCallback

    known = list(callbacks or ())
    if going_on and not any(isinstance(callback, JITCheckpointCallback) for callback in known):
        known.insert(0, JITCheckpointCallback())
    for callback in (files, *adapt_hub_callbacks(known, hub_control=TrainingHubControl())):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=newest_checkpoint(trainer.args.output_dir) if going_on else None)


def newest_checkpoint(output_dir: str) -> str | None:
    """Return the newest whole checkpoint of transformers, ``None`` where there is none.

    :param output_dir: training-hub's ``ckpt_output_dir``.
    """
    from training_hub.checkpoint_utils import HF_LAYOUT, find_latest_valid_checkpoint

    return find_latest_valid_checkpoint(output_dir, layouts=(HF_LAYOUT,))


def number(value: Any) -> float | None:
    """Return what transformers logs as a plain number."""
    return None if value is None else float(value)
