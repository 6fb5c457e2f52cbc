"""The rules over several documented parameters, each with what it breaks and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from airflow_provider_finetune.contract.parameters import (
    BACKENDS,
    FineTuneParameters,
    LoRAParameters,
    TrainingParameters,
)

_CREDENTIAL = re.compile(r"(_TOKEN|_API_KEY|_SECRET|_PASSWORD|_ACCESS_KEY\w*)$")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Rule:
    """A rule over several parameters: ``check`` gets their values in the order of ``needs``.

    ``check`` returns ``None`` where the rule holds, else what is broken and how to mend it. The first of ``needs`` is
    the parameter that the message names.
    """

    needs: tuple[str, ...]
    check: Callable[..., tuple[str, str] | None]


def _backend_of_algorithm(backend: str, algorithm: str) -> tuple[str, str] | None:
    # "mini-trainer" is the documented default, so with SFT it can only mean "the algorithm's own".
    if backend in ("mini-trainer", BACKENDS[algorithm]):
        return None
    return f"{algorithm} runs on {BACKENDS[algorithm]} only", f"Leave it out, or set it to {BACKENDS[algorithm]!r}"


def _sft_saves_a_model(checkpoint_at_epoch: bool | None, save_samples: int | None, algorithm: str) -> Any:
    if algorithm == "SFT" and checkpoint_at_epoch is False and not save_samples:
        return (
            "SFT would train and save no model: it saves at the end of an epoch or every training_save_samples samples",
            "Leave training_checkpoint_at_epoch out, or set training_save_samples above 0",
        )
    return None


def _osft_saves_a_model(save_final: bool | None, checkpoint_at_epoch: bool | None, algorithm: str) -> Any:
    if algorithm == "OSFT" and save_final is False and not checkpoint_at_epoch:
        return (
            "OSFT would train and save no model",
            "Leave training_save_final_checkpoint out, or set training_checkpoint_at_epoch=True",
        )
    return None


def _ratio_between_0_and_1(ratio: float, algorithm: str) -> tuple[str, str] | None:
    if algorithm != "OSFT" or 0 < ratio < 1:
        return None
    if ratio == 1:
        # mini-trainer drops a falsy "1 - ratio" and trains with its own default of 0.5 instead.
        return "OSFT with every rank unfrozen is full fine-tuning", "Use training_algorithm='SFT' for that"
    return "it must lie above 0 and below 1: 0 trains nothing", "Take e.g. 0.25"


def _tokens_hold_one_sequence(max_tokens: int, max_seq_len: int) -> tuple[str, str] | None:
    if max_tokens >= max_seq_len:
        return None
    return (
        f"it is less than training_max_seq_len={max_seq_len}, so one full sequence would not fit in a micro-batch",
        "Raise it, or lower training_max_seq_len",
    )


def _sft_schedule_is_cosine(scheduler: str | None, kwargs: dict[str, Any], algorithm: str) -> tuple[str, str] | None:
    if algorithm != "SFT" or (scheduler in (None, "cosine") and not kwargs):
        return None
    return (
        "SFT (instructlab-training) always follows a cosine schedule without options and would ignore this",
        "Leave training_lr_scheduler and training_lr_scheduler_kwargs out, or use OSFT or LoRA",
    )


def _sft_processes_its_own_data(use_processed: bool | None, algorithm: str) -> tuple[str, str] | None:
    if algorithm == "SFT" and use_processed:
        return "SFT tokenises its data itself and would ignore this", "Leave it out, or use training_algorithm='OSFT'"
    return None


def _osft_has_no_fsdp_options(strategy: str | None, algorithm: str) -> tuple[str, str] | None:
    if algorithm == "OSFT" and strategy is not None:
        return "OSFT (mini-trainer) takes no FSDP options and would ignore this", "Leave it out, or use SFT"
    return None


def _one_quantisation(four: bool | None, eight: bool | None) -> tuple[str, str] | None:
    if four and eight:
        return "4-bit and 8-bit quantisation exclude each other", "Set one of the two"
    return None


def _procs_is_auto_or_number(procs: str) -> tuple[str, str] | None:
    if procs == "auto" or (procs.isdecimal() and int(procs) >= 1):
        return None
    return "it must be 'auto' or a whole number of at least 1", "'auto' starts one process for each GPU of the worker"


def _procs_fit_the_gpus(procs: str, gpus: int) -> tuple[str, str] | None:
    if procs.isdecimal() and gpus and int(procs) > gpus:
        return (
            f"each process needs a GPU of its own, and training_resource_gpu_per_worker={gpus}",
            "Ask for more GPUs, or leave it at 'auto'",
        )
    return None


def no_credential_literals(variables: Iterable[str]) -> tuple[str, str] | None:
    """Return what is wrong with variables of a pod whose values everybody may read, and how to mend it.

    :param variables: names of those that are given with their value.
    """
    names = credential_names(variables)
    if not names:
        return None
    return (
        f"{', '.join(names)} would stand readable in the job object",
        f"Use secrets={{{names[0]!r}: 'secret-name/key'}}",
    )


def _one_worker_for_lora(workers: int, lora_r: int) -> tuple[str, str] | None:
    # lora_r says which algorithm it is: only LoRA's record has it.
    if workers == 1:
        return None
    return (
        "LoRA on several workers is refused until it has been seen on GPUs",
        "Use one worker with more GPUs (training_resource_gpu_per_worker)",
    )


def broken_variable_names(names: Iterable[str]) -> tuple[str, str] | None:
    """Return what is wrong with names of environment variables of a pod, and how to mend it.

    :param names: as the DAG author wrote them.
    """
    for name in names:
        if not _VARIABLE.fullmatch(name):
            return f"{name!r} is no name of an environment variable", "Use letters, digits and underscores"
        if name.startswith("PET_") or name == "JOB_COMPLETION_INDEX":
            return (
                f"{name} is set by Kubeflow Trainer, which refuses it from anybody else",
                "Leave it out: workers and processes are training_resource_num_workers and _num_procs_per_worker",
            )
    return None


def credential_names(variables: Iterable[str]) -> list[str]:
    """Return the names among ``variables`` that are a credential's by their ending, e.g. ``HF_TOKEN``."""
    return [name for name in variables if _CREDENTIAL.search(name)]


_RULES = (
    Rule(("max_tokens_per_gpu", "max_seq_len"), _tokens_hold_one_sequence),
    Rule(("resource_num_procs_per_worker",), _procs_is_auto_or_number),
)

RULES: dict[type[TrainingParameters], tuple[Rule, ...]] = {
    FineTuneParameters: (
        *_RULES,
        Rule(("backend", "algorithm"), _backend_of_algorithm),
        Rule(("checkpoint_at_epoch", "save_samples", "algorithm"), _sft_saves_a_model),
        Rule(("save_final_checkpoint", "checkpoint_at_epoch", "algorithm"), _osft_saves_a_model),
        Rule(("unfreeze_rank_ratio", "algorithm"), _ratio_between_0_and_1),
        Rule(("lr_scheduler", "lr_scheduler_kwargs", "algorithm"), _sft_schedule_is_cosine),
        Rule(("use_processed_dataset", "algorithm"), _sft_processes_its_own_data),
        Rule(("fsdp_sharding_strategy", "algorithm"), _osft_has_no_fsdp_options),
    ),
    LoRAParameters: (*_RULES, Rule(("lora_load_in_4bit", "lora_load_in_8bit"), _one_quantisation)),
}

CLUSTER_RULES = (
    Rule(("resource_num_procs_per_worker", "resource_gpu_per_worker"), _procs_fit_the_gpus),
    Rule(("envs",), no_credential_literals),
    Rule(("envs",), broken_variable_names),
    Rule(("resource_num_workers", "lora_r"), _one_worker_for_lora),
)
"""Rules of the launchers that run on a cluster, beside those of :data:`RULES`."""
