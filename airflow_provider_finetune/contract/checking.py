"""Given arguments held against a record: values in their declared types, and every broken rule at once.

A rule is skipped while one of the parameters that it needs is not known yet: a template, an upstream result or a
mapped value. The same call in ``execute`` then knows everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from airflow_provider_finetune.contract.coercion import coerce
from airflow_provider_finetune.contract.parameters import TrainingParameters, declared_types
from airflow_provider_finetune.contract.rules import RULES, Rule


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
