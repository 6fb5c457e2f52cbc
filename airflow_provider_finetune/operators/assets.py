"""Assets and paths as arguments: both stand for a text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset

from airflow_provider_finetune.contract.checking import Problem


def plain(value: Any) -> Any:
    """Return the text of an Asset or a path: a template field renders the one as its repr and the other not at all.

    :param value: an argument; any other value is returned as it is.
    """
    if isinstance(value, Asset):
        return value.uri
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def assets_without_scheme(documented: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each Asset whose URI is a bare word.

    :param documented: arguments by name.
    """
    rule = "the URI of this Asset has no scheme, so it would look like a HuggingFace id"
    cure = "Give it one, e.g. Asset('file:///data/train.jsonl')"
    return [
        Problem(name, value.uri, rule, cure)
        for name, value in documented.items()
        if isinstance(value, Asset) and not re.match(r"^[a-z][a-z0-9+.-]*:", value.uri)
    ]
