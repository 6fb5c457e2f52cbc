"""What a DAG author wrote, or a rendered template left, as a value of the declared type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin


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
