"""Documented parameters to training-hub keywords, per algorithm, with every quirk and its reason.

Each documented parameter has one of four fates, and :data:`FATES` names it for every algorithm: it is sent under a
keyword, the runner sees to it itself, it has no effect (said once in the task log when somebody has set it), or the
contract's rules refuse it. A new training-hub release touches this module.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

from airflow_provider_finetune.contract.parameters import OPERATOR_ONLY
from airflow_provider_finetune.contract.spec import RECORDS, TrainingSpec
from airflow_provider_finetune.runner.failures import UserError

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
    "data_output_dir": Sent("data_output_dir"),
    "use_liger": Sent("use_liger"),
    "lr_scheduler": Sent("lr_scheduler"),
}

_OSFT: dict[str, Fate] = {
    **_COMMON,
    "seed": Sent("seed"),
    "unfreeze_rank_ratio": Sent("unfreeze_rank_ratio"),
    "osft_memory_efficient_init": WithoutEffect("training-hub decides by itself how it loads the model"),
    # An empty list is falsy for mini-trainer, which then chooses the patterns of the architecture itself.
    "target_patterns": Sent("target_patterns"),
    "use_processed_dataset": Sent("use_processed_dataset"),
    "unmask_messages": Sent("unmask_messages"),
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
    "unmask_messages": Ours("written into each row as 'unmask'"),
    "save_final_checkpoint": WithoutEffect("SFT saves at the end of each epoch (training_checkpoint_at_epoch)"),
    "save_samples": Sent("save_samples"),
    "accelerate_full_state_at_epoch": Sent("accelerate_full_state_at_epoch"),
    "fsdp_sharding_strategy": Ours("sent as FSDPOptions, which must be built where instructlab-training is"),
}

_RESERVED = WithoutEffect("it is reserved in training-hub")
_LORA: dict[str, Fate] = {
    **_COMMON,
    "effective_batch_size": Ours("micro-batch x accumulation x processes"),
    "max_tokens_per_gpu": WithoutEffect("training-hub's LoRA has no such limit; set extra_args['micro_batch_size']"),
    "checkpoint_at_epoch": WithoutEffect("training-hub's LoRA saves every extra_args['save_steps'] steps (500)"),
    "data_output_dir": Ours("directory of the tokenised data"),
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
    "data_output_dir": _LORA["data_output_dir"],
    "unmask_messages": Ours("in the labels of the tokenised rows"),
    "use_liger": WithoutEffect("Liger kernels need a GPU"),
    "fsdp_sharding_strategy": WithoutEffect("on a CPU each process holds the whole model"),
}

_ON_CPU: dict[str, dict[str, Fate]] = {"sft": _SFT_ON_CPU, "lora_sft": _LORA_ON_CPU}

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
    return (_ON_CPU if device == "cpu" else FATES).get(algorithm, FATES[algorithm])


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
    spec: TrainingSpec, *, device: str, data_path: str, model_path: str, checkpoints: str, data_dir: str
) -> dict[str, Any]:
    """Return what training-hub's function of the algorithm is called with, without ``extra_args``.

    :param spec: what is to be trained.
    :param device: ``cuda`` or ``cpu``.
    :param data_path: the prepared data.
    :param model_path: directory or HuggingFace id of the base model.
    :param checkpoints: the library's output directory.
    :param data_dir: where the library may write what it processes.
    """
    parameters = effective_parameters(spec)
    sent: dict[str, Any] = {"model_path": model_path, "data_path": data_path, "ckpt_output_dir": checkpoints}
    for name, fate in fates(spec.algorithm, device).items():
        value = parameters[name]
        if isinstance(fate, Sent) and value is not None and value != []:
            sent[fate.keyword] = value
    if spec.algorithm == "lora_sft":
        sent["dataset_type"] = "passthrough"
    if spec.algorithm == "sft" and device == "cpu" and spec.keep == "model":
        # All of them go in the end. The one before the last stays for a training that ends while it saves.
        sent["save_total_limit"] = 2
    if spec.algorithm == "lora_sft" or device == "cpu":
        # The runner itself processes the data and starts the processes.
        return sent
    sent.setdefault("data_output_dir", data_dir)
    sent["nnodes"] = spec.nodes
    sent["nproc_per_node"] = spec.processes_per_node
    if spec.algorithm == "osft" and parameters["lr_scheduler_kwargs"]:
        sent["lr_scheduler_kwargs"] = {
            name: _number(value) for name, value in parameters["lr_scheduler_kwargs"].items()
        }
    if spec.algorithm == "sft" and parameters["fsdp_sharding_strategy"]:
        sent["fsdp_options"] = _fsdp_options(parameters["fsdp_sharding_strategy"])
    return sent


_NEVER_THE_USERS = frozenset({"save_model", "effective_batch_size", "backend"})
"""Without ``save_model`` there would be nothing to publish; the batch is put together by :func:`batching`."""


def with_extra_args(sent: Mapping[str, Any], extra_args: Mapping[str, Any]) -> dict[str, Any]:
    """Add the user's own keywords, which may not replace a documented parameter's.

    :param sent: what :func:`keywords` returned.
    :param extra_args: the user's own.
    :raises UserError: a keyword that we set ourselves; ``dataset_type`` may be chosen.
    """
    ours = (set(sent) - {"dataset_type"}) | _NEVER_THE_USERS
    taken = sorted(ours & set(extra_args))
    if taken:
        raise UserError(
            "extra_args_collide",
            f"extra_args sets {', '.join(taken)}, which the operator sets itself",
            "Use the documented training_* parameter, or remove it from extra_args",
        )
    return {**sent, **extra_args}


def refuse_what_would_be_dropped(algorithm: str, backend: str, names: Iterable[str]) -> None:
    """Hold keywords against the installed training-hub, whose functions drop what they do not know in silence.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param backend: name of the algorithm's backend in training-hub's registry.
    :param names: the keywords that are about to be sent.
    :raises UserError: one of them would be dropped.
    """
    dropped = sorted(set(names) - accepted_keywords(algorithm, backend))
    if dropped:
        raise UserError(
            "keyword_unknown",
            f"training-hub {version('training-hub')} would ignore {', '.join(dropped)} for {algorithm} ({backend})",
            "Check the spelling in extra_args, or use an image with a training-hub that knows it",
        )


def ensure_a_model_is_saved(spec: TrainingSpec, rows: int) -> None:
    """SFT's model is a checkpoint, so one must be due before the training ends.

    :param spec: what is to be trained.
    :param rows: samples of one epoch.
    :raises UserError: there would be no model.
    """
    parameters = effective_parameters(spec)
    samples = rows * parameters["num_epochs"]
    if spec.algorithm != "sft" or parameters["checkpoint_at_epoch"]:
        return
    if (wanted := parameters["save_samples"] or 0) > samples or wanted <= 0:
        raise UserError(
            "no_model_would_be_saved",
            f"SFT would save no model: training_checkpoint_at_epoch=False, and training_save_samples={wanted} is not "
            f"reached in a training on {samples} samples",
            "Leave training_checkpoint_at_epoch out, or lower training_save_samples",
        )


_BEFORE_THE_BACKEND = frozenset({"callbacks", "enable_jit_checkpoint", "checkpoint_storage"})
"""Keywords that the algorithms themselves act on."""

_READ_BY_OSFT_BACKEND = frozenset(
    {
        *("model_path", "data_path", "ckpt_output_dir", "max_seq_len", "data_output_dir", "use_processed_dataset"),
        *("unmask_messages", "is_pretraining", "block_size", "document_column_name"),
        *("effective_batch_size", "num_epochs", "use_liger", "warmup_steps", "target_patterns", "unfreeze_rank_ratio"),
        *("nproc_per_node", "nnodes", "node_rank", "rdzv_id", "rdzv_endpoint", "master_addr", "master_port"),
    }
)
"""What training-hub's OSFT backend uses, renames or takes apart before the rest meets mini-trainer's fields."""


def accepted_keywords(algorithm: str, backend: str) -> set[str]:
    """Return the keywords that reach the installed backend.

    SFT and OSFT filter by the fields of their backends' arguments. LoRA, and the backends of ours, get a plain dict, of
    which they read some names and no others (a signature also takes names that nothing reads), so their source decides.
    """
    from training_hub import AlgorithmRegistry

    if algorithm == "sft" and backend == "instructlab-training":
        from instructlab.training import TrainingArgs as SFTArguments

        train = AlgorithmRegistry.get_algorithm(algorithm).train
        named = {
            name for name, item in inspect.signature(train).parameters.items() if item.kind is not item.VAR_KEYWORD
        }
        return (named - {"self"}) | set(SFTArguments.model_fields)
    if algorithm == "osft":
        from mini_trainer import TrainingArgs as OSFTArguments

        return {item.name for item in fields(OSFTArguments)} | _READ_BY_OSFT_BACKEND | _BEFORE_THE_BACKEND
    source = inspect.getsource(inspect.getmodule(AlgorithmRegistry.get_backend(algorithm, backend)))  # type: ignore[arg-type]
    # What "sft" makes of the others is an option of instructlab-training.
    return set(_PARAMS_READ.findall(source)) | ({"callbacks"} if algorithm == "sft" else _BEFORE_THE_BACKEND)


_PARAMS_READ = re.compile(r"""params(?:\.get)?[\[(]\s*['"](\w+)['"]""")


def _fsdp_options(strategy: str) -> Any:
    from instructlab.training import FSDPOptions, ShardingStrategies

    return FSDPOptions(sharding_strategy=ShardingStrategies[strategy])


def _number(value: Any) -> Any:
    """Text such as ``"2"`` would reach the scheduler as text."""
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            continue
    return value
