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
        # The filter would log the last finite loss in place of a NaN.
        logging_nan_inf_filter=False,
        packing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        **chosen,
    )


def hub_callbacks(callbacks: list[Any] | None) -> list[Any]:
    """Return training-hub's callbacks as those of transformers.

    :param callbacks: training-hub's keyword of that name.
    """
    from training_hub.adapters.unsloth import adapt_hub_callbacks
    from training_hub.callbacks import TrainingHubControl

    return list(adapt_hub_callbacks(callbacks, hub_control=TrainingHubControl())) if callbacks else []
