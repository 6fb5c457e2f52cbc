"""Which matrices of a model OSFT parts, known from its architecture before its weights are there."""

from __future__ import annotations

from typing import Any

from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError


def patterns_of(model_type: str) -> list[str]:
    """Return parts of the names of the matrices that mini-trainer targets in an architecture.

    mini-trainer looks for the architecture in the path that the model is loaded from, so a Qwen in ``/opt/models``
    would get the patterns of OPT. Here it is told by the model's own configuration.

    :param model_type: of the model's ``config.json``.
    """
    from mini_trainer.osft_utils import get_model_patterns

    # mini-trainer's names have hyphens in some places and underscores in others.
    found: list[str] = get_model_patterns(f"{model_type} {model_type.replace('_', '-')}")
    return found


def tell(model: Any, patterns: list[str], unfreeze_rank_ratio: float, events: Events) -> None:
    """Say how much of a model is trained.

    :param model: on torch's meta device.
    :param patterns: parts of the names of the matrices.
    :param unfreeze_rank_ratio: share of each matrix's ranks that is trained.
    :param events: takes the line.
    :raises UserError: the model has no such matrix.
    """
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
    chosen = [name for name in matrices if any(pattern in name for pattern in patterns)]
    if not chosen:
        raise UserError(
            "no_matrix_targeted",
            f"OSFT would part no matrix: no name of the model's has {' or '.join(patterns)} in it. Names are e.g. "
            + ", ".join(list(matrices)[1:8]),
            "Name parts of the names of its matrices in training_target_patterns",
        )
    events.say(
        f"OSFT: {len(chosen)} of {len(matrices)} matrices are parted, and the {unfreeze_rank_ratio:.0%} of their ranks "
        "that matter least are trained; all other weights are trained whole"
    )
