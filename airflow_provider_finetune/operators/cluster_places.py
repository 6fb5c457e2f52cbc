"""The places of a training on a cluster: which of them a pod reaches, and which of them outlive it. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.launchers.places import Places, claim_path, is_on_claim
from airflow_provider_finetune.launchers.refusal import CannotRender

READ = ("dataset", "training_base_model")
OUTPUTS = ("output_model", "output_metrics", "output_loss_chart")
WRITTEN = ("pvc_path", *OUTPUTS, "training_data_output_dir")

CONFIGURED_ROOT = "configured_pvc_path"
"""Name of the setting ``[finetune] pvc_path`` among the arguments."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_READABLE = {"dataset": ("pvc", "file"), "training_base_model": ("pvc", "file", "hf")}


def root_of(documented: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Return the one root of all files: the task's own, else the configured one.

    :param documented: documented inputs by name.
    :param arguments: the other arguments by name.
    """
    return given(documented, "pvc_path") or arguments.get(CONFIGURED_ROOT)


def given(documented: Mapping[str, Any], name: str) -> str | None:
    """Return a place, ``None`` where there is none, also where a template made a text of ``None``.

    :param documented: documented inputs by name.
    :param name: one of them.
    """
    value = documented.get(name)
    return value if isinstance(value, str) and value not in ("", "None") else None


def places_of(documented: Mapping[str, Any], arguments: Mapping[str, Any], config: Mapping[str, Any]) -> Places:
    """Return the places of a training whose arguments are all known and checked.

    :param documented: documented inputs by name.
    :param arguments: the other arguments by name.
    :param config: ``kubernetes_config`` as plain JSON.
    """
    written = [root_of(documented, arguments), *(given(documented, name) for name in WRITTEN)]
    read = [given(documented, name) for name in READ]
    return Places(config, read=filter(None, read), written=filter(None, written))


def place_problems(known: Mapping[str, Any], arguments: Mapping[str, Any], config: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with each place that is known.

    :param known: documented inputs by name; an unknown one is missing.
    :param arguments: the other arguments by name.
    :param config: ``kubernetes_config`` as plain JSON.
    """
    missing = "pvc_path" in known and root_of(known, arguments) is None
    problems = [_no_root(known)] if missing else []
    places = {name: given(known, name) for name in (*READ, *WRITTEN)}
    if "pvc_path" in known and places["pvc_path"] is None:
        places["[finetune] pvc_path"] = arguments.get(CONFIGURED_ROOT)
    for name, place in places.items():
        broken = _broken(name, place, config) if place else None
        if broken:
            problems.append(Problem(name, place, *broken))
    return problems


def _no_root(known: Mapping[str, Any]) -> Problem:
    rule = "nothing that a pod writes to its own disk is there when it has gone, so the model would be lost"
    if _scheme(given(known, "output_model") or "") not in (None, "pvc", "file"):
        rule += ", and this version cannot write to output_model directly"
    cure = "Name a directory of a claim, pvc_path='pvc://<claim>/<path>', or pvc_path under [finetune]"
    return Problem("pvc_path", None, rule, cure)


def _broken(name: str, place: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    read = name in READ
    try:
        places = Places(config, read=[place] if read else (), written=[] if read else [place])
    except CannotRender as error:
        return error.rule, error.cure
    return _scheme_is_wrong(name, place) or (None if read else _does_not_last(name, place, places))


def _scheme_is_wrong(name: str, place: str) -> tuple[str, str] | None:
    readable = _READABLE.get(name, ("pvc", "file"))
    if _scheme(place) in (None, *readable):
        return None
    what = "reads" if name in READ else "writes"
    rule = f"on a cluster this version {what} {', '.join(f'{scheme}://' for scheme in readable)} and paths only"
    cure = "Copy it to a claim in a task before this one" if name in READ else "Copy it there in a task after this one"
    return rule, f"{cure}, and name pvc://<claim>/<path>"


def _does_not_last(name: str, place: str, places: Places) -> tuple[str, str] | None:
    path = places.path(place)
    if name == "output_model" and is_on_claim(place) and not claim_path(place).path:
        return "publishing would replace all that is in the claim", "Name a directory in it: pvc://<claim>/<path>"
    if not path.startswith("/"):
        return "it must be an absolute path in the pod", "Name it from the root, or as pvc://<claim>/<path>"
    # Tokenised data may go with the pod.
    if name == "training_data_output_dir" or places.lasts(path):
        return None
    return (
        "no volume that outlives the pod is mounted there, so what is written would be lost",
        "Name pvc://<claim>/<path>, or the volume and its mount in kubernetes_config",
    )


def _scheme(place: str) -> str | None:
    found = _SCHEME.match(place)
    return found.group(1).lower() if found else None
