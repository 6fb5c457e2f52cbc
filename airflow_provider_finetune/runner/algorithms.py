"""Documented parameters to training-hub keywords, per algorithm; what becomes of each is in ``fates.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_finetune.contract.coercion import coerce
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.fates import (
    MAX_TOKENS_PER_MICRO_BATCH_ON_CPU,
    Sent,
    effective_parameters,
    fates,
)


def refuse_quantisation_on_cpu(spec: TrainingSpec) -> None:
    """4 and 8 bit kernels (bitsandbytes) need CUDA.

    :param spec: what is to be trained.
    :raises UserError: the spec asks for one of them.
    """
    for bits in ("4", "8"):
        if spec.parameters.get(f"lora_load_in_{bits}bit"):
            raise UserError(
                "quantisation_needs_cuda",
                f"training_lora_load_in_{bits}bit=True: {bits}-bit quantisation needs a CUDA device, and this "
                "training runs on the CPU",
                "Leave it out, or train where there is a GPU",
            )


@dataclass(frozen=True)
class Batching:
    """How one optimizer step is put together."""

    micro_batch_size: int
    accumulation_steps: int
    processes: int = 1

    @property
    def effective(self) -> int:
        """Rows of one optimizer step: micro-batch x accumulation x processes."""
        return self.micro_batch_size * self.accumulation_steps * self.processes


def batching(spec: TrainingSpec, *, device: str, longest: int, processes: int = 1) -> Batching:
    """Put the documented effective batch size together from micro-batches.

    training-hub's LoRA would take the whole effective batch (128) as one micro-batch. The default on CUDA is at most
    2 rows; on a CPU as many as fit the token limit. It is the largest number that divides the batch exactly.

    :param spec: what is to be trained.
    :param device: ``cuda`` or ``cpu``.
    :param longest: tokens of the longest row.
    :param processes: processes that train side by side, over all nodes.
    :raises UserError: a size in ``extra_args`` is no whole number above 0.
    """
    parameters = effective_parameters(spec)
    per_process = max(1, math.ceil(parameters["effective_batch_size"] / processes))
    micro, accumulation = (_size(spec.extra_args, name) for name in ("micro_batch_size", "gradient_accumulation_steps"))
    if accumulation and not micro:
        micro = max(1, per_process // accumulation)
    elif not micro:
        tokens = min(parameters["max_tokens_per_gpu"], MAX_TOKENS_PER_MICRO_BATCH_ON_CPU)
        limit = 2 if device == "cuda" else max(1, tokens // max(longest, 1))
        micro = max(size for size in range(1, min(limit, per_process) + 1) if per_process % size == 0)
    return Batching(micro, accumulation or math.ceil(per_process / micro), processes)


def _size(extra_args: Mapping[str, Any], name: str) -> int | None:
    value = extra_args.get(name)
    if value is None or (type(value) is int and value > 0):
        return value
    raise UserError(
        "extra_args_wrong",
        f"extra_args sets {name}={value!r}, which must be a whole number above 0",
        "Write it without quotes, or leave it out: training_effective_batch_size is enough",
    )


def keywords(
    spec: TrainingSpec,
    *,
    device: str,
    model_path: str,
    checkpoints: str,
    data_dir: str,
    patterns: list[str] | None = None,
    chats: bool = True,
) -> dict[str, Any]:
    """Return what training-hub's function of the algorithm is called with, without ``extra_args`` and the data.

    :param spec: what is to be trained.
    :param device: ``cuda`` or ``cpu``.
    :param model_path: directory or HuggingFace id of the base model.
    :param checkpoints: the library's output directory.
    :param data_dir: where the library may write what it processes.
    :param patterns: parts of the names of the matrices that OSFT trains, those of the architecture.
    :param chats: the rows are chats, and not texts or tokens.
    """
    parameters = effective_parameters(spec)
    sent: dict[str, Any] = {"model_path": model_path, "ckpt_output_dir": checkpoints}
    for name, fate in fates(spec.algorithm, device).items():
        value = parameters[name]
        if isinstance(fate, Sent) and value is not None and value != []:
            sent[fate.keyword] = value
    if spec.resume != "never":
        sent["enable_jit_checkpoint"] = True
    if spec.algorithm == "osft":
        sent |= _osft(spec, parameters, device) | {"target_patterns": parameters["target_patterns"] or patterns or []}
    elif spec.algorithm == "sft":
        sent |= _sft(spec, parameters, device)
    else:
        # Whether Unsloth keeps the labels of rows that are passed through has not been seen on a GPU yet.
        sent["dataset_type"] = "chat_template" if device == "cuda" and chats else "passthrough"
    if spec.algorithm != "lora_sft" and device == "cuda":
        # The library starts the processes. It is given tokens, so what was reported is what is trained.
        sent |= {"nnodes": spec.nodes, "nproc_per_node": spec.processes_per_node, "data_output_dir": data_dir}
    return sent


def _osft(spec: TrainingSpec, parameters: Mapping[str, Any], device: str) -> dict[str, Any]:
    options = {name: _number(value) for name, value in parameters["lr_scheduler_kwargs"].items()}
    # No backend of a CPU reads these two, but training-hub's function wants them.
    wanted = {name: parameters[name] for name in ("max_tokens_per_gpu", "max_seq_len")}
    return {
        **wanted,
        **({"use_processed_dataset": True} if device == "cuda" else _few_models(spec)),
        **({"lr_scheduler_kwargs": options} if options else {}),
    }


def _sft(spec: TrainingSpec, parameters: Mapping[str, Any], device: str) -> dict[str, Any]:
    if device == "cpu":
        return _few_models(spec)
    strategy = parameters["fsdp_sharding_strategy"]
    # As plain values, since keywords travel as JSON; instructlab-training makes its own object of them.
    return {"process_data": False, **({"fsdp_options": {"sharding_strategy": strategy}} if strategy else {})}


def _few_models(spec: TrainingSpec) -> dict[str, Any]:
    # All of them go in the end. The one before the last stays for a training that ends while it saves.
    return {"save_total_limit": 2} if spec.keep == "model" else {}


_NEVER_THE_USERS = frozenset(
    {"save_model", "effective_batch_size", "backend", "data_path", "use_processed_dataset", "process_data"}
)
"""Without ``save_model`` there would be nothing to publish; the batch is put together by :func:`batching`, and the data
by the check."""

_RESUMING = frozenset(
    {"enable_jit_checkpoint", "on_demand_checkpointing", "resume_from_full_state_checkpoint", "checkpoint_storage"}
)
"""A checkpoint is gone on from where it is known to be of the same training, which only a lineage tells."""


def refuse_collisions(spec: TrainingSpec) -> None:
    """Refuse what ``extra_args`` may never set, which is known without any library.

    :param spec: what is to be trained.
    :raises UserError: it sets such a keyword.
    """
    if resuming := sorted(_RESUMING & set(spec.extra_args)):
        raise UserError(
            "extra_args_collide",
            f"extra_args sets {', '.join(resuming)}, and the operator sees to checkpoints that a retry goes on from",
            "Use resume=, and a pvc_path that outlives the pod",
        )
    _refuse(_NEVER_THE_USERS, spec)


def with_extra_args(spec: TrainingSpec, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Add the user's own keywords, which may not replace a documented parameter's.

    :param spec: its ``extra_args``.
    :param sent: what :func:`keywords` returned.
    :raises UserError: a keyword that we set ourselves; ``dataset_type`` may be chosen.
    """
    _refuse((set(sent) - {"dataset_type"}) | _NEVER_THE_USERS, spec)
    trust = {"trust_remote_code": trusts_remote_code(spec)} if "trust_remote_code" in spec.extra_args else {}
    return {**sent, **spec.extra_args, **trust}


def _refuse(ours: set[str] | frozenset[str], spec: TrainingSpec) -> None:
    if taken := sorted(ours & set(spec.extra_args)):
        raise UserError(
            "extra_args_collide",
            f"extra_args sets {', '.join(taken)}, which the operator sets itself",
            "Use the documented training_* parameter, or remove it from extra_args",
        )


def trusts_remote_code(spec: TrainingSpec) -> bool:
    """Return whether code that a model brings along may be run.

    A rendered template is a text, and ``bool("False")`` is true.

    :param spec: its ``extra_args`` say so.
    :raises UserError: they say something that is neither true nor false.
    """
    value = spec.extra_args.get("trust_remote_code")
    try:
        return bool(coerce(bool | None, value))
    except ValueError as error:
        raise UserError(
            "extra_args_wrong",
            f"extra_args sets trust_remote_code={value!r}: {error}",
            "Set it to True, or leave it out",
        ) from error


def ensure_a_model_is_saved(spec: TrainingSpec, rows: int, *, meets: bool = False) -> None:
    """SFT's model is a checkpoint, so one must be due before the training ends.

    :param spec: what is to be trained.
    :param rows: samples of one epoch.
    :param meets: some batch must end where the samples seen are a multiple of ``training_save_samples``, as
        instructlab-training wants it; without, it is enough that one goes past.
    :raises UserError: there would be no model.
    """
    parameters = effective_parameters(spec)
    samples = rows * parameters["num_epochs"]
    if spec.algorithm != "sft" or parameters["checkpoint_at_epoch"]:
        return
    cure = "Leave training_checkpoint_at_epoch out, or "
    if (wanted := parameters["save_samples"] or 0) > samples or wanted <= 0:
        raise UserError(
            "no_model_would_be_saved",
            f"SFT would save no model: training_checkpoint_at_epoch=False, and training_save_samples={wanted} is not "
            f"reached in a training on {samples} samples",
            f"{cure}lower training_save_samples",
        )
    batch = parameters["effective_batch_size"]
    ends = (
        epoch * rows + min(end, rows)
        for epoch in range(parameters["num_epochs"])
        for end in range(batch, rows + batch, batch)
    )
    if meets and all(end % wanted for end in ends):
        raise UserError(
            "no_model_would_be_saved",
            f"SFT would save no model: training_checkpoint_at_epoch=False, and no batch of {batch} ends at a multiple "
            f"of training_save_samples={wanted}, where alone instructlab-training saves",
            f"{cure}set training_save_samples to a multiple of training_effective_batch_size",
        )


def _number(value: Any) -> Any:
    """Text such as ``"2"`` would reach the scheduler as text."""
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            continue
    return value
