"""The documented parameters of the two pipelines components as typed records.

A record holds the documented names without ``training_``, their types, their documented defaults and the range of each
value; ``None`` means what the component's description says. Rules over several parameters are in ``rules.py``;
``checking.py`` holds arguments against both. The runner builds the record again from the spec and reads its attributes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, get_type_hints

ALGORITHMS = {"OSFT": "osft", "SFT": "sft", "LORA": "lora_sft"}
"""Documented algorithm name -> training-hub's own."""

BACKENDS = {"OSFT": "mini-trainer", "SFT": "instructlab-training"}
"""The one training-hub backend of each algorithm of :class:`FineTuneParameters`."""

FSDP_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD")

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?")


def _documented(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    one_of: tuple[str, ...] | None = None,
    pattern: re.Pattern[str] | None = None,
    like: str = "",
) -> Any:
    """Declare one documented parameter: its default and the range its value must lie in."""
    limits = {"at_least": at_least, "above": above, "below": below, "one_of": one_of, "pattern": pattern, "like": like}
    if isinstance(default, (dict, list)):
        return field(default_factory=type(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class TrainingParameters:
    """What both components document."""

    base_model: str = _documented("Qwen/Qwen2.5-1.5B-Instruct")
    effective_batch_size: int = _documented(128, at_least=1)
    max_tokens_per_gpu: int = _documented(64000, at_least=1)
    max_seq_len: int = _documented(8192, at_least=1)
    learning_rate: float | None = _documented(None, above=0)
    lr_warmup_steps: int | None = _documented(None, at_least=0)
    checkpoint_at_epoch: bool | None = _documented(None)
    num_epochs: int | None = _documented(None, at_least=1)
    data_output_dir: str | None = _documented(None)
    envs: dict[str, str] = _documented({})
    resource_cpu_per_worker: str = _documented("8", pattern=_QUANTITY, like="8 or 500m")
    resource_gpu_per_worker: int = _documented(1, at_least=0)
    resource_memory_per_worker: str = _documented("32Gi", pattern=_QUANTITY, like="32Gi or 512M")
    resource_num_procs_per_worker: str = _documented("auto")
    resource_num_workers: int = _documented(1, at_least=1)
    metadata_labels: dict[str, str] = _documented({})
    metadata_annotations: dict[str, str] = _documented({})
    seed: int | None = _documented(None, at_least=0)
    use_liger: bool | None = _documented(None)
    lr_scheduler: str | None = _documented(None)


@dataclass(frozen=True, kw_only=True)
class FineTuneParameters(TrainingParameters):
    """The ``finetuning`` component: OSFT and SFT."""

    algorithm: str = _documented("OSFT", one_of=("OSFT", "SFT"))
    backend: str = _documented("mini-trainer", one_of=("mini-trainer", "instructlab-training"))
    unfreeze_rank_ratio: float = _documented(0.25)
    osft_memory_efficient_init: bool = _documented(True)
    target_patterns: list[str] = _documented([])
    use_processed_dataset: bool | None = _documented(None)
    unmask_messages: bool | None = _documented(None)
    lr_scheduler_kwargs: dict[str, Any] = _documented({})
    save_final_checkpoint: bool | None = _documented(None)
    save_samples: int | None = _documented(None, at_least=0)
    accelerate_full_state_at_epoch: bool | None = _documented(None)
    fsdp_sharding_strategy: str | None = _documented(None, one_of=FSDP_STRATEGIES)


@dataclass(frozen=True, kw_only=True)
class LoRAParameters(TrainingParameters):
    """The ``lora`` component."""

    max_tokens_per_gpu: int = _documented(32000, at_least=1)
    resource_cpu_per_worker: str = _documented("4", pattern=_QUANTITY, like="4 or 500m")
    lora_r: int = _documented(16, at_least=1)
    lora_alpha: int = _documented(32, at_least=1)
    lora_dropout: float = _documented(0.0, at_least=0, below=1)
    lora_target_modules: list[str] = _documented([])
    lora_use_rslora: bool | None = _documented(None)
    lora_use_dora: bool | None = _documented(None)
    lora_load_in_4bit: bool | None = _documented(None)
    lora_load_in_8bit: bool | None = _documented(None)
    lora_bnb_4bit_quant_type: str | None = _documented(None)
    lora_bnb_4bit_compute_dtype: str | None = _documented(None)
    lora_bnb_4bit_use_double_quant: bool | None = _documented(None)
    lora_sample_packing: bool | None = _documented(None)


OPERATOR_ONLY = frozenset(
    {
        "base_model",
        "algorithm",
        "backend",
        "envs",
        "resource_cpu_per_worker",
        "resource_gpu_per_worker",
        "resource_memory_per_worker",
        "resource_num_procs_per_worker",
        "resource_num_workers",
        "metadata_labels",
        "metadata_annotations",
    }
)
"""Fields that say where to run or that the spec carries by a name of its own: not in ``TrainingSpec.parameters``."""


def declared_types(record: type[TrainingParameters]) -> dict[str, Any]:
    """Return the declared type of each field of ``record``, by name."""
    return get_type_hints(record)
