"""What becomes of each documented parameter, per algorithm, with every quirk and its reason.

Each has one of four fates: it is sent to training-hub under a keyword, the runner sees to it itself, it has no effect
(said once in the task log when somebody has set it), or the contract's rules refuse it. A new training-hub release
touches this module, and ``algorithms.py``, which puts the keywords together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from airflow_provider_finetune.contract.parameters import OPERATOR_ONLY
from airflow_provider_finetune.contract.spec import RECORDS, TrainingSpec

MAX_TOKENS_PER_MICRO_BATCH_ON_CPU = 4096
"""More tokens at once make no CPU faster, and the logits of a large vocabulary alone would fill its memory."""


@dataclass(frozen=True)
class Sent:
    """training-hub gets it under this keyword; ``None`` is not sent."""

    keyword: str


@dataclass(frozen=True)
class Ours:
    """The runner sees to it."""

    how: str


@dataclass(frozen=True)
class WithoutEffect:
    """Nothing reads it."""

    why: str


@dataclass(frozen=True)
class Refused:
    """The contract's rules let no value through that would be ignored."""


Fate = Sent | Ours | WithoutEffect | Refused

_COMMON: dict[str, Fate] = {
    "effective_batch_size": Sent("effective_batch_size"),
    "max_tokens_per_gpu": Sent("max_tokens_per_gpu"),
    "max_seq_len": Sent("max_seq_len"),
    # training-hub checks for a float, and a whole number in JSON comes back as an int: the record's type holds it.
    "learning_rate": Sent("learning_rate"),
    "lr_warmup_steps": Sent("warmup_steps"),
    "checkpoint_at_epoch": Sent("checkpoint_at_epoch"),
    "num_epochs": Sent("num_epochs"),
    "data_output_dir": Ours("directory of the tokenised data"),
    "use_liger": Sent("use_liger"),
    "lr_scheduler": Sent("lr_scheduler"),
}

_OSFT: dict[str, Fate] = {
    **_COMMON,
    "seed": Sent("seed"),
    "unfreeze_rank_ratio": Sent("unfreeze_rank_ratio"),
    "osft_memory_efficient_init": WithoutEffect("training-hub decides by itself how it loads the model"),
    # mini-trainer would guess the patterns by the path of the model, in which "/opt/" is the architecture OPT.
    "target_patterns": Ours("those of the architecture where it is empty"),
    "use_processed_dataset": Ours("the rows of the data set are taken as tokens; all rows reach training-hub as such"),
    "unmask_messages": Ours("in the labels of the tokenised rows"),
    "lr_scheduler_kwargs": Ours("sent with numbers parsed out of text"),
    "save_final_checkpoint": Sent("save_final_checkpoint"),
    "save_samples": WithoutEffect("OSFT saves at the end of an epoch and at the end of training"),
    "accelerate_full_state_at_epoch": WithoutEffect("it is an option of SFT"),
    "fsdp_sharding_strategy": Refused(),
}

_SFT: dict[str, Fate] = {
    **_COMMON,
    # ``seed`` would be dropped: instructlab-training's field is random_seed.
    "seed": Sent("random_seed"),
    "lr_scheduler": Refused(),
    "lr_scheduler_kwargs": Refused(),
    "unfreeze_rank_ratio": WithoutEffect("it is an option of OSFT"),
    "osft_memory_efficient_init": WithoutEffect("it is an option of OSFT"),
    "target_patterns": WithoutEffect("it is an option of OSFT"),
    "use_processed_dataset": Refused(),
    "unmask_messages": Ours("in the labels of the tokenised rows"),
    "save_final_checkpoint": WithoutEffect("SFT saves at the end of each epoch (training_checkpoint_at_epoch)"),
    "save_samples": Sent("save_samples"),
    "accelerate_full_state_at_epoch": Sent("accelerate_full_state_at_epoch"),
    "fsdp_sharding_strategy": Ours("sent as one of the FSDP options"),
}

_RESERVED = WithoutEffect("it is reserved in training-hub")
_LORA: dict[str, Fate] = {
    **_COMMON,
    "effective_batch_size": Ours("micro-batch x accumulation x processes"),
    "max_tokens_per_gpu": WithoutEffect("training-hub's LoRA has no such limit; set extra_args['micro_batch_size']"),
    "checkpoint_at_epoch": WithoutEffect("training-hub's LoRA saves every extra_args['save_steps'] steps (500)"),
    "use_liger": WithoutEffect("training-hub's LoRA has no Liger kernels"),
    # Only the initialisation of the adapter on CUDA; the order of the data as well on a CPU.
    "seed": Sent("seed"),
    "lora_r": Sent("lora_r"),
    "lora_alpha": Sent("lora_alpha"),
    "lora_dropout": Sent("lora_dropout"),
    "lora_target_modules": Sent("target_modules"),
    "lora_use_rslora": Sent("use_rslora"),
    "lora_use_dora": Sent("use_dora"),
    "lora_load_in_4bit": Sent("load_in_4bit"),
    "lora_load_in_8bit": Sent("load_in_8bit"),
    # Sent raw to from_pretrained with load_in_4bit, which ends in a TypeError: the component never sends them.
    "lora_bnb_4bit_quant_type": _RESERVED,
    "lora_bnb_4bit_compute_dtype": _RESERVED,
    "lora_bnb_4bit_use_double_quant": _RESERVED,
    "lora_sample_packing": Sent("sample_packing"),
}

FATES: dict[str, dict[str, Fate]] = {"osft": _OSFT, "sft": _SFT, "lora_sft": _LORA}

_LORA_ON_CPU: dict[str, Fate] = {
    **_LORA,
    "max_tokens_per_gpu": Ours(f"limits the micro-batch, with {MAX_TOKENS_PER_MICRO_BATCH_ON_CPU} at most"),
    "checkpoint_at_epoch": Sent("checkpoint_at_epoch"),
    "lora_sample_packing": WithoutEffect(
        "without flash attention packed samples would see each other, so a CPU trains them side by side"
    ),
    "lora_load_in_4bit": Refused(),
    "lora_load_in_8bit": Refused(),
}

_SFT_ON_CPU: dict[str, Fate] = {
    **_SFT,
    "effective_batch_size": _LORA["effective_batch_size"],
    "max_tokens_per_gpu": _LORA_ON_CPU["max_tokens_per_gpu"],
    "max_seq_len": Ours("longer rows are dropped when the data is tokenised"),
    "use_liger": WithoutEffect("Liger kernels need a GPU"),
    "fsdp_sharding_strategy": WithoutEffect("on a CPU each process holds the whole model"),
}

_OSFT_ON_CPU: dict[str, Fate] = {
    **_OSFT,
    **{name: _SFT_ON_CPU[name] for name in ("effective_batch_size", "max_tokens_per_gpu", "max_seq_len", "use_liger")},
}

_ON_CPU: dict[str, dict[str, Fate]] = {"osft": _OSFT_ON_CPU, "sft": _SFT_ON_CPU, "lora_sft": _LORA_ON_CPU}

DEFAULTS: dict[str, dict[str, Any]] = {
    "osft": {"learning_rate": 5e-6, "lr_warmup_steps": 0, "num_epochs": 1, "checkpoint_at_epoch": False},
    # Full accelerator state at each epoch costs several times the model on disk.
    "sft": {
        "learning_rate": 5e-6,
        "lr_warmup_steps": 0,
        "num_epochs": 1,
        "checkpoint_at_epoch": True,
        "accelerate_full_state_at_epoch": False,
    },
    "lora_sft": {"learning_rate": 2e-4, "lr_warmup_steps": 10, "num_epochs": 3, "checkpoint_at_epoch": False},
}
"""What ``None`` means where the component, and not training-hub, decides."""


def fates(algorithm: str, device: str) -> dict[str, Fate]:
    """Return the fate of each documented parameter.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param device: ``cuda`` or ``cpu``.
    """
    return (_ON_CPU if device == "cpu" else FATES)[algorithm]


def effective_parameters(spec: TrainingSpec) -> dict[str, Any]:
    """Return the documented parameters with what ``None`` means put in its place."""
    record = spec.record()
    given = {item.name: getattr(record, item.name) for item in fields(record) if item.name not in OPERATOR_ONLY}
    defaults = DEFAULTS[spec.algorithm]
    return {name: defaults.get(name) if value is None else value for name, value in given.items()}


def without_effect(spec: TrainingSpec, device: str) -> list[str]:
    """Return one sentence for each parameter that somebody has set and that nothing reads."""
    documented, given = RECORDS[spec.algorithm](), spec.record()
    return [
        f"training_{name}={getattr(given, name)!r} has no effect: {fate.why}"
        for name, fate in fates(spec.algorithm, device).items()
        if isinstance(fate, WithoutEffect) and getattr(given, name) != getattr(documented, name)
    ]
