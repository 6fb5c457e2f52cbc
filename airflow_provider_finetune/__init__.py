"""Airflow provider that fine-tunes language models with training-hub.

Nothing is imported while this module loads: Airflow reads :func:`get_provider_info` in every component before its
configuration exists, and the runner ships this file to containers that have no Airflow at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_finetune.operators.finetune import FineTuneOperator
    from airflow_provider_finetune.operators.lora import LoRAOperator

__version__ = "0.1.0"

__all__ = ["FineTuneOperator", "LoRAOperator", "get_provider_info"]

_OPERATORS = {
    "FineTuneOperator": "airflow_provider_finetune.operators.finetune",
    "LoRAOperator": "airflow_provider_finetune.operators.lora",
}


def __getattr__(name: str) -> Any:
    if name not in _OPERATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_OPERATORS[name]), name)
