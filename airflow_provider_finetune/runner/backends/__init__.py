"""training-hub backends for machines without CUDA, registered in training-hub's ``AlgorithmRegistry`` from outside."""

from __future__ import annotations

from types import ModuleType


def of(algorithm: str) -> ModuleType:
    """Return the module of an algorithm's backend, which imports training-hub.

    It has ``register()``, which makes the backend known to training-hub and returns its name, and
    ``training_arguments(params)``, which is TRL's configuration.

    :param algorithm: ``sft`` or ``lora_sft``.
    """
    if algorithm == "sft":
        from airflow_provider_finetune.runner.backends import trl_sft

        return trl_sft
    from airflow_provider_finetune.runner.backends import trl_lora

    return trl_lora
