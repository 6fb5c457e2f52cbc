"""What the two operators' signatures are made of.

The types say what a DAG author may write. A template is a text whatever it renders to, and an upstream result
(``prepare.output``) is known only later, so each of them allows both; the checked values have the types of
:mod:`airflow_provider_finetune.contract.parameters`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from airflow.sdk import Asset, XComArg

Text: TypeAlias = "str | XComArg"

Place: TypeAlias = "str | Path | Asset | XComArg"
"""A path, a URI or a HuggingFace id; an Asset stands for its URI."""

WholeNumber: TypeAlias = "int | str | XComArg"

Number: TypeAlias = "float | str | XComArg"

Switch: TypeAlias = "bool | str | XComArg"
"""Templates may render to ``true``, ``yes``, ``1``, ``false``, ``no`` or ``0``."""

Pairs: TypeAlias = "Mapping[str, Any] | str | XComArg"
"""A dict or ``KEY=VAL,KEY=VAL``."""

Names: TypeAlias = "Sequence[str] | XComArg"
"""A list or ``a,b``."""

NOT_DOCUMENTED = frozenset({"self", "kwargs", "__class__"})
"""What ``locals()`` holds at the head of an operator's ``__init__`` beside the operator's own inputs."""


def documented_names(init: Callable[..., None]) -> tuple[str, ...]:
    """Return the keyword-only arguments of an operator's ``__init__``: its own inputs, in their order.

    :param init: the function as it is written in the class.
    """
    code = init.__code__
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
