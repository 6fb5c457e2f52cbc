"""What may stand where an argument names a place, with every launcher and on this machine. Pure functions on text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.contract.uris import has_credential, hub_name, is_remote, scheme, shown

HUB_KINDS = {"dataset": "dataset", "training_base_model": "model"}
"""What of the HuggingFace hub an argument may name."""

READ = tuple(HUB_KINDS)
OUTPUTS = ("output_model", "output_metrics", "output_loss_chart")
DIRECTORIES = ("pvc_path", "training_data_output_dir")
"""Where programs work: a store of objects cannot stand for them."""

WRITTEN = (*DIRECTORIES, *OUTPUTS)

Broken = tuple[str, str]
"""What a value breaks, and what to do about it."""

_BEFORE_SLASHES = re.compile(r"[^/?]*(?=://)")
_FILE_ELSEWHERE = re.compile(r"file://(?!/|localhost/)")

_WEB = "a model is a directory of files, and a web server does not list them"
_NOT_READ = {
    "dataset": {"oci": "an image holds no rows"},
    "training_base_model": {"http": _WEB, "https": _WEB},
}
_NOT_WRITTEN = {
    "http": "a web server is only read from",
    "https": "a web server is only read from",
    "hf": "this version publishes to no repository of HuggingFace",
    "oci": "this version pushes to no registry",
}


def place_problems(documented: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with each place by its text, whichever launcher trains.

    A scheme that nobody here knows passes: whether it can be read depends on what the training has installed.

    :param documented: documented inputs by name; an unknown one is missing.
    """
    places = {name: documented.get(name) for name in (*READ, *WRITTEN)}
    broken = {name: _broken(name, place) for name, place in places.items() if isinstance(place, str)}
    return [Problem(name, shown(str(places[name])), *why) for name, why in broken.items() if why]


def local_problems(documented: Mapping[str, Any]) -> list[Problem]:
    """Return the places that this machine does not have.

    :param documented: documented inputs by name, as far as they are known.
    """
    return [
        Problem(
            name,
            documented[name],
            "launcher='local' trains on this machine, which mounts no claim",
            "Name a directory of this machine, as a path or as file:///absolute/path",
        )
        for name in (*READ, *WRITTEN)
        if str(documented.get(name)).startswith("pvc://")
    ]


def no_directory(place: str) -> Broken | None:
    """Return what is wrong with a place as one that programs work in.

    :param place: what was given or configured.
    """
    if not is_remote(place):
        return None
    rule = "the training works in it, so it must be a directory"
    return rule, "Use a path, file:// or, on a cluster, pvc://; outputs may be remote"


def _broken(name: str, place: str) -> Broken | None:
    broken = _form_is_wrong(place)
    if broken or scheme(place) is None:
        return broken
    if name in READ:
        return _cannot_be_read(name, place)
    if name in DIRECTORIES:
        return no_directory(place)
    return _cannot_be_written(name, place)


def _form_is_wrong(place: str) -> Broken | None:
    if has_credential(place):
        return (
            "a credential stands in it, which the DAG's source, its rendered template and the job would show",
            "Leave it out, and name where it lies in secrets=",
        )
    before = _BEFORE_SLASHES.match(place)
    if before and before.group() != scheme(place):
        return f"{before.group()!r} is no scheme", "A scheme is a word in lower case, e.g. s3://bucket/path"
    if _FILE_ELSEWHERE.match(place):
        rule = "what stands between file:// and the next slash is another machine's name, and no part of the path"
        return rule, "Write three slashes before an absolute path: file:///data/train.jsonl"
    return None


def _cannot_be_read(name: str, place: str) -> Broken | None:
    if scheme(place) == "hf" and hub_name(place, HUB_KINDS[name]) is None:
        return (
            f"it is not the name of a {HUB_KINDS[name]} on the HuggingFace hub",
            "Write hf://<organisation>/<name>, and a revision behind it as @<revision>",
        )
    rule = _NOT_READ[name].get(str(scheme(place)))
    cures = {
        "dataset": "Name a file, a directory, a URI such as s3://<bucket>/<path>, or a HuggingFace id",
        "training_base_model": "Name a HuggingFace id, a directory, or a URI such as s3://<bucket>/<path>",
    }
    in_store = is_remote(place) and scheme(place) != "hf"
    if name == "training_base_model" and in_store and re.search(r"[?#]", place):
        rule = rule or "a model in a store has neither query nor fragment"
    return (rule, cures[name]) if rule else None


def _cannot_be_written(name: str, place: str) -> Broken | None:
    rule = _NOT_WRITTEN.get(str(scheme(place)))
    if rule:
        return rule, "Name a directory, pvc://<claim>/<path>, or a store such as s3://<bucket>/<path>"
    if is_remote(place) and re.search(r"[?#]", place):
        return "a result has neither query nor fragment", "Leave '?' and '#' out"
    if is_remote(place) and name == "output_model" and not re.search(r"://[^/]+/+[^/]", place):
        return "publishing would replace all that lies there", f"Name a directory in it: {place.rstrip('/')}/<path>"
    return None
