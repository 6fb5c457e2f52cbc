"""Airflow provider that fine-tunes language models with training-hub.

Nothing is imported while this module loads: Airflow reads :func:`get_provider_info` in every component before its
configuration exists, and the runner ships this file to containers that have no Airflow at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_finetune.contract.version import __version__
    from airflow_provider_finetune.operators.finetune import FineTuneOperator
    from airflow_provider_finetune.operators.lora import LoRAOperator
    from airflow_provider_finetune.operators.volumes import volumes_for
    from airflow_provider_finetune.provider_info import get_provider_info

__all__ = ["FineTuneOperator", "LoRAOperator", "__version__", "get_provider_info", "volumes_for"]

_MODULES = {
    "__version__": "airflow_provider_finetune.contract.version",
    "FineTuneOperator": "airflow_provider_finetune.operators.finetune",
    "LoRAOperator": "airflow_provider_finetune.operators.lora",
    "get_provider_info": "airflow_provider_finetune.provider_info",
    "volumes_for": "airflow_provider_finetune.operators.volumes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
