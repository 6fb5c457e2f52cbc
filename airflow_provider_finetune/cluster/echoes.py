"""Takes out of an API server's words the values that were sent to it.

Admission checks quote what they refuse, and a TrainJob's environment with it. Their format is that of Go's
``field.Error``: ``<field>: <kind>: <value>: <reason>``, several of them joined by commas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_KIND = re.compile(r"(?:Invalid value|Duplicate value|Unsupported value|Not found): ")
# JSON, or Go's own notation: []v1.EnvVar{…}, map[string]string{…}, &v1.Trainer{…}, (*int32)(nil), <nil>.
_VALUE = re.compile(r'["`\[{(&<]|-?\d|(?:null|true|false|nil|map|[\w*]+(?:\.\w+)*[\[{(])')
_SHORTEST_SECRET = 6
"""Characters; a shorter value, such as ``true``, is no secret, and its removal would make any text unreadable."""


def without_values(text: str) -> str:
    """Return ``text`` with field and reason of each refusal, and without the values between them.

    :param text: the message of an API answer or of one of its causes.
    """
    kept, at = [], 0
    while found := _KIND.search(text, at):
        kept.append(text[at : found.start()])
        at = found.end()
        # Words without a colon behind them are the reason: "Invalid value: field is immutable".
        end = _end_of_value(text, at) if _VALUE.match(text, at) else max(text.find(": ", at), at)
        if end > at and not text.startswith(": ", end):
            kept.append(found.group().removesuffix(": "))
        at = end + 2 * text.startswith(": ", end)
    return "".join([*kept, text[at:]])


def _end_of_value(text: str, start: int) -> int:
    """Return where a value ends; a value that is cut short goes to the end of the text."""
    depth, at = 0, start
    while at < len(text):
        character = text[at]
        if character in '"`':
            at = _end_of_string(text, at)
            continue
        if character in "]})" and not depth:
            return at
        depth += (character in "[{(") - (character in "]})")
        if not depth and text.startswith((": ", ", ", "\n"), at):
            return at
        at += 1
    return at


def _end_of_string(text: str, start: int) -> int:
    at, quote = start + 1, text[start]
    while at < len(text) and text[at] != quote:
        at += 2 if text[at] == "\\" and quote == '"' else 1
    return at + 1


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` without these values, whatever words they stand between.

    :param text: what is to be shown.
    :param secrets: see :func:`sent_values`.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
    return text


def sent_values(body: Any) -> Iterator[str]:
    """Yield the values of all environment variables in an object, as far as they are long enough to be secrets.

    :param body: a manifest, or a part of one.
    :yields: each value.
    """
    if isinstance(body, dict):
        for variable in body.get("env") or ():
            value = variable.get("value") if isinstance(variable, dict) else None
            if isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
                yield value
        body = list(body.values())
    if isinstance(body, list):
        for part in body:
            yield from sent_values(part)
