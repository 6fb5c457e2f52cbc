"""The documented parameters of the two pipelines components as typed records, with their rules.

A record holds the documented names without ``training_``, their types and their documented defaults; ``None`` means
what the component's description says. Two things are done with a record, both without importing anything heavy:

* :func:`check` turns what a DAG author wrote (numbers, or the strings that a rendered template leaves) into values of
  the declared types and collects every broken rule, so that a message names them all at once;
* the runner builds the record again from the spec and reads typed attributes.

A rule is skipped while one of the parameters that it needs is not known yet: a template, an upstream result or a
mapped value. The same call in ``execute`` then knows everything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

ALGORITHMS = {"OSFT": "osft", "SFT": "sft", "LORA": "lora_sft"}
"""Documented algorithm name -> training-hub's own."""

BACKENDS = {"OSFT": "mini-trainer", "SFT": "instructlab-training"}
"""The one training-hub backend of each algorithm of :class:`FineTuneParameters`."""

FSDP_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD")

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?")
_CREDENTIAL = re.compile(r"(_TOKEN|_API_KEY|_SECRET|_PASSWORD|_ACCESS_KEY\w*)$")


@dataclass(frozen=True)
class Problem:
    """One broken rule, in the words that the DAG author reads.

    ``parameter`` is the operator's argument name, ``value`` what was given, ``rule`` what it breaks and ``cure`` what
    to do about it.
    """

    parameter: str
    value: Any
    rule: str
    cure: str

    def __str__(self) -> str:
        return f"{self.parameter}={self.value!r}: {self.rule}. {self.cure}."


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


def coerce(declared: Any, value: Any) -> Any:
    """Turn ``value`` into the declared type.

    Rendered templates are strings, so ``"1e-5"`` is a float, ``"true"`` a bool, ``"a=1,b=2"`` a dict, ``"q,v"`` a
    list; ``"None"`` is what Jinja makes of ``None``, and for an optional type ``""`` is ``None`` as well.

    :param declared: a type of the records above, e.g. ``int``, ``float | None`` or ``dict[str, str]``.
    :param value: what was given.
    :raises ValueError: the value is not of that type; the text says what would be.
    """
    if get_origin(declared) is UnionType:
        inner = next(kind for kind in get_args(declared) if kind is not type(None))
        return None if value is None or value in ("", "None") else coerce(inner, value)
    if value is None or value == "None":
        raise ValueError("it must not be None")
    return _COERCIONS[declared](value)


def _to_bool(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() not in words:
        raise ValueError("it must be true or false")
    return words[str(value).strip().lower()]


def _to_int(value: Any) -> int:
    number = _to_float(value, "a whole number")
    if not number.is_integer():
        raise ValueError("it must be a whole number")
    # A float holds 53 bits, and a seed may have 64.
    return int(value) if isinstance(value, int) or str(value).isdecimal() else int(number)


def _to_float(value: Any, expected: str = "a number") -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"it must be {expected}")
    return number


def _to_str(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("it must be a text")
    if value == "":
        raise ValueError("it must not be empty")
    return str(value)


def _to_pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): inner for key, inner in value.items()}
    if not isinstance(value, str):
        raise ValueError("it must be a dict or a text of the form KEY=VAL,KEY=VAL")
    pairs = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        key, equals, inner = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(
                "it must have the form KEY=VAL,KEY=VAL, and a part without '=' was found "
                "(a value that holds a comma needs the dict form)"
            )
        pairs[key.strip()] = inner.strip()
    return pairs


def _to_texts(value: Any) -> dict[str, str]:
    pairs = _to_pairs(value)
    for key, inner in pairs.items():
        if isinstance(inner, bool) or not isinstance(inner, (str, int, float)):
            raise ValueError(f"the value of {key} must be a text")
    return {key: str(inner) for key, inner in pairs.items()}


def _to_names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return list(value)
    raise ValueError("it must be a list of names or a text of names separated by commas")


_COERCIONS: dict[Any, Callable[[Any], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    dict[str, str]: _to_texts,
    dict[str, Any]: _to_pairs,
    list[str]: _to_names,
}


def declared_types(record: type[TrainingParameters]) -> dict[str, Any]:
    """Return the declared type of each field of ``record``, by name."""
    return get_type_hints(record)


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


def _no_credential_literals(envs: dict[str, str]) -> tuple[str, str] | None:
    names = credential_names(envs)
    if not names:
        return None
    return (
        f"{', '.join(names)} would stand readable in the job object",
        f"Use secrets={{{names[0]!r}: 'secret-name/key'}}",
    )


def credential_names(envs: Mapping[str, str]) -> list[str]:
    """Return the names in ``envs`` that are a credential's by their ending, e.g. ``HF_TOKEN``."""
    return [name for name in envs if _CREDENTIAL.search(name)]


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
    Rule(("envs",), _no_credential_literals),
)
"""Rules of the launchers that run on a cluster, beside those of :data:`RULES`."""


def check(
    record: type[TrainingParameters],
    given: Mapping[str, Any],
    *,
    is_known: Callable[[Any], bool] = lambda value: True,
    further_rules: Iterable[Rule] = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """Coerce what was given to the declared types and collect every broken rule.

    :param record: :class:`FineTuneParameters` or :class:`LoRAParameters`.
    :param given: documented names without ``training_``; a name that is missing has its default.
    :param is_known: false for a value that is not known yet; its checks are left for later.
    :param further_rules: e.g. :data:`CLUSTER_RULES`.
    :return: the known values in their declared types, and the problems: of single values in the order of
        the record, then those between values.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    defaults, types = record(), declared_types(record)
    for declared in fields(record):
        value = given.get(declared.name, getattr(defaults, declared.name))
        if not is_known(value):
            continue
        try:
            value = coerce(types[declared.name], value)
            _check_limits(value, declared.metadata)
        except ValueError as error:
            problems.append(_problem(declared.name, value, str(error), _usual(declared.name, defaults)))
        else:
            values[declared.name] = value
    for rule in (*RULES[record], *further_rules):
        if all(name in values for name in rule.needs):
            broken = rule.check(*(values[name] for name in rule.needs))
            if broken:
                problems.append(_problem(rule.needs[0], values[rule.needs[0]], *broken))
    return values, problems


def _check_limits(value: Any, limits: Mapping[str, Any]) -> None:
    if value is None:
        return
    if limits["one_of"] and value not in limits["one_of"]:
        raise ValueError(f"it must be one of {', '.join(limits['one_of'])}")
    if limits["at_least"] is not None and value < limits["at_least"]:
        raise ValueError(f"it must be at least {limits['at_least']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ValueError(f"it must be above {limits['above']}")
    if limits["below"] is not None and value >= limits["below"]:
        raise ValueError(f"it must be below {limits['below']}")
    if limits["pattern"] is not None and not limits["pattern"].fullmatch(value):
        raise ValueError(f"it must be a Kubernetes quantity like {limits['like']}")


def _usual(name: str, defaults: TrainingParameters) -> str:
    return f"Leave it out for the default, {getattr(defaults, name)!r}"


def _problem(name: str, value: Any, rule: str, cure: str) -> Problem:
    # The values of environment variables may be credentials that somebody typed in the wrong place.
    shown = "***" if name == "envs" else value
    return Problem(f"training_{name}", shown, rule, cure)
