"""training-hub backends for machines without CUDA, registered in training-hub's ``AlgorithmRegistry`` from outside."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_MODULES = {"osft": "osft", "sft": "trl_sft", "lora_sft": "trl_lora"}

_ON_CUDA = {"osft": "mini-trainer", "sft": "instructlab-training", "lora_sft": "unsloth"}
"""training-hub's own backends."""


def of(algorithm: str) -> ModuleType:
    """Return the module of an algorithm's backend for machines without CUDA, which imports training-hub.

    It has ``register()``, which makes the backend known to training-hub and returns its name, and
    ``training_arguments(params)``, which is TRL's configuration.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    """
    return import_module(f"{__name__}.{_MODULES[algorithm]}")


def register(algorithm: str, device: str) -> str:
    """Import training-hub and return the name of the backend that trains, known to training-hub.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param device: ``cuda`` or ``cpu``.
    """
    if device == "cpu":
        name: str = of(algorithm).register()
        return name
    import training_hub  # noqa: F401

    return _ON_CUDA[algorithm]
