"""The arguments of an operator: which of them are known, and what is wrong with those.

Pure functions, without Airflow: the same ones run while a DAG file is parsed, where templates and upstream results are
not known yet, and in ``execute``, where everything is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from airflow_provider_finetune.contract.checking import Problem, check
from airflow_provider_finetune.contract.parameters import TrainingParameters
from airflow_provider_finetune.contract.rules import CLUSTER_RULES
from airflow_provider_finetune.launchers.kubernetes_config import FORMS
from airflow_provider_finetune.operators.cluster_rules import cluster_problems
from airflow_provider_finetune.operators.place_rules import Broken, local_problems, place_problems
from airflow_provider_finetune.operators.pod_rules import pod_problems

KUBERNETES_KEYS = frozenset(FORMS)

_TEMPLATE = re.compile(r"\{[{%#]")


def is_known(value: Any) -> bool:
    """Return whether ``value`` can be checked now: no template and no upstream result anywhere in it.

    :param value: an operator argument as the DAG author wrote it.
    """
    if isinstance(value, str):
        return not _TEMPLATE.search(value)
    if isinstance(value, Mapping):
        return all(is_known(inner) for inner in (*value, *value.values()))
    if isinstance(value, (list, tuple, set)):
        return all(map(is_known, value))
    # XComArg, the argument of a mapped task group and dag.param() have this in common.
    return not hasattr(value, "iter_references")


def seconds(value: timedelta | float | None) -> float | None:
    """Return a duration in seconds; ``None`` stays ``None``.

    :param value: a duration, or seconds.
    """
    return value.total_seconds() if isinstance(value, timedelta) else value


def none_if_empty(value: str | None) -> str | None:
    """Return ``None`` for what a template makes of ``None``.

    :param value: a rendered optional text.
    """
    return None if value in (None, "", "None") else value


def problems_of(
    record: type[TrainingParameters], documented: Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Problem]]:
    """Check everything that is known.

    :param record: record of the documented parameters.
    :param documented: the operator's own inputs by name: the 38 documented ones, and ``output_kind`` of LoRA.
    :param arguments: the other arguments by name, ``launcher`` resolved.
    :return: the known values of ``record`` in their declared types, and every problem.
    """
    launcher = arguments["launcher"]
    given = {name.removeprefix("training_"): value for name, value in documented.items()}
    further = CLUSTER_RULES if launcher in ("trainjob", "pod") else ()
    values, problems = check(record, given, is_known=is_known, further_rules=further)
    checks = {**_ARGUMENTS, "secrets": _secrets_rule(launcher), "pod_operator_arguments": _pod_rule(launcher)}
    inputs, others = ({name: it for name, it in group.items() if is_known(it)} for group in (documented, arguments))
    known = {**inputs, **others}
    for name, rule in {**_DOCUMENTED, **checks}.items():
        broken = rule(known[name]) if name in known else None
        if broken:
            problems.append(Problem(name, _shown(name, known[name]), *broken))
    problems += place_problems(inputs)
    if launcher == "local":
        problems += local_problems(documented)
    elif launcher in ("trainjob", "pod"):
        problems += cluster_problems(inputs, values, others)
    if launcher == "pod":
        # Its names are known also where templates stand behind them.
        problems += pod_problems(values, {**others, "pod_operator_arguments": arguments["pod_operator_arguments"]})
    return values, problems


def _shown(name: str, value: Any) -> Any:
    # These may hold a credential that somebody typed in the wrong place.
    hidden = ("secrets", "extra_args", "pod_operator_arguments", "kubernetes_config")
    if name not in hidden:
        return value
    return {str(key): "***" for key in value} if isinstance(value, Mapping) else "***"


def _text(value: Any) -> Broken | None:
    if value is None or isinstance(value, str):
        return None
    return "it must be a text", "Give a path, a URI or a name"


def _dataset(value: Any) -> Broken | None:
    if isinstance(value, str) and none_if_empty(value):
        return None
    return "there is nothing to train on", "Give the path or URI of the data, or an upstream task's output"


def _one_of(*allowed: str) -> Callable[[Any], Broken | None]:
    def rule(value: Any) -> Broken | None:
        if value in allowed:
            return None
        return f"it must be one of {', '.join(map(repr, allowed))}", f"The usual is {allowed[0]!r}"

    return rule


def _duration(value: Any) -> Broken | None:
    number = seconds(value) if isinstance(value, (timedelta, int, float)) and not isinstance(value, bool) else math.nan
    if value is None or (number is not None and 0 < number < math.inf):
        return None
    return "it must be a timedelta or a number of seconds, above 0", "E.g. timedelta(minutes=30) or 1800"


def _interval(value: Any) -> Broken | None:
    return _duration(math.nan if value is None else value)


def _share(value: Any) -> Broken | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        return None
    return "it is a share of the rows, from 0 to 1", "0.05 lets 5 % of them be dropped"


def _count(value: Any) -> Broken | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return None
    return "it must be a whole number of at least 0", "0 prints no sample"


def _true_or_false(value: Any) -> Broken | None:
    return None if isinstance(value, bool) else ("it must be True or False", "Leave it out for the default")


def _optional_true_or_false(value: Any) -> Broken | None:
    return None if value is None else _true_or_false(value)


def _extra_args(value: Any) -> Broken | None:
    if value is None:
        return None
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return "it travels as JSON, and a value in it is nothing that JSON has", "Use texts, numbers, lists and dicts"
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return None
    return "it must be a dict of training-hub keywords", "E.g. extra_args={'weight_decay': 0.01}"


def _kubernetes_config(value: Any) -> Broken | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return "it must be a dict", f"Its keys may be {', '.join(sorted(KUBERNETES_KEYS))}"
    if "resources" in value:
        return "resources stand beside training_resource_*, and only one can be right", "Use training_resource_*"
    unknown = sorted(str(key) for key in value if key not in KUBERNETES_KEYS)
    if unknown:
        return f"unknown: {', '.join(unknown)}", f"Its keys may be {', '.join(sorted(KUBERNETES_KEYS))}"
    return None


def _secrets_rule(launcher: Any) -> Callable[[Any], Broken | None]:
    local = launcher == "local"
    form, of = ("conn:<connection id>", "launcher='local'") if local else ("<secret name>/<key>", "a cluster")
    pattern = re.compile(r"conn:.+" if local else r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[-._A-Za-z0-9]+")

    def rule(value: Any) -> Broken | None:
        fits = isinstance(value, Mapping) and all(
            isinstance(name, str) and isinstance(source, str) and pattern.fullmatch(source)
            for name, source in value.items()
        )
        if value is None or fits:
            return None
        return f"on {of} it names where each secret lies", f"Use secrets={{'HF_TOKEN': {form!r}}}"

    return rule


def _pod_rule(launcher: Any) -> Callable[[Any], Broken | None]:
    def rule(value: Any) -> Broken | None:
        if value is None:
            return None
        if launcher != "pod":
            return f"launcher={launcher!r} starts no KubernetesPodOperator", "Leave it out, or use launcher='pod'"
        return None if isinstance(value, Mapping) else ("it must be a dict", "Its keys are KubernetesPodOperator's own")

    return rule


_DOCUMENTED: dict[str, Callable[[Any], Broken | None]] = {
    "dataset": _dataset,
    "pvc_path": _text,
    "output_model": _text,
    "output_metrics": _text,
    "output_loss_chart": _text,
    "kubernetes_config": _kubernetes_config,
    "output_kind": _one_of("adapter", "merged", "both"),
}

_ARGUMENTS: dict[str, Callable[[Any], Broken | None]] = {
    "launcher": _one_of("trainjob", "pod", "local"),
    "kubernetes_conn_id": _text,
    "namespace": _text,
    "image": _text,
    "runtime": _text,
    "runtime_kind": _one_of("ClusterTrainingRuntime", "TrainingRuntime"),
    "queue_name": _text,
    "gpu_resource": _text,
    "runner": _one_of("configmap", "inline", "image"),
    "local_python": _text,
    "queue_timeout": _duration,
    "startup_timeout": _duration,
    "training_timeout": _duration,
    "progress_interval": _interval,
    "resume": _one_of("auto", "never", "require"),
    "on_finish": _one_of("delete_succeeded", "delete", "keep"),
    "keep": _one_of("model", "checkpoints", "all"),
    "fail_fast": _true_or_false,
    "max_dropped": _share,
    "show_samples": _count,
    "extra_args": _extra_args,
    "deferrable": _optional_true_or_false,
}
