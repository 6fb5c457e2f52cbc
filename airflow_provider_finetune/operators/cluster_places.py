"""The places of a training on a cluster: which of them a pod reaches, and which of them outlive it. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.contract.uris import hub_name, is_remote, scheme, shown
from airflow_provider_finetune.launchers.places import Places, claim_path, is_on_claim
from airflow_provider_finetune.launchers.refusal import CannotRender
from airflow_provider_finetune.operators.place_rules import HUB_KINDS, READ, WRITTEN, Broken, no_directory

CONFIGURED_ROOT = "configured_pvc_path"
"""Name of the setting ``[finetune] pvc_path`` among the arguments."""

_CONFIGURED = "[finetune] pvc_path"


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
    root = root_of(documented, arguments)
    written = [root, *(given(documented, name) for name in WRITTEN)]
    read = [given(documented, name) for name in READ]
    return Places(config, read=filter(None, read), written=filter(None, written), scratch=root is None)


def unreachable_places(
    known: Mapping[str, Any], values: Mapping[str, Any], arguments: Mapping[str, Any], config: Mapping[str, Any]
) -> list[Problem]:
    """Return the places that a pod does not reach, or that are lost with it.

    :param known: documented inputs by name; an unknown one is missing.
    :param values: the known values of the record in their declared types.
    :param arguments: the other arguments by name.
    :param config: ``kubernetes_config`` as plain JSON.
    """
    places = {name: given(known, name) for name in (*READ, *WRITTEN)}
    if "pvc_path" in known and places["pvc_path"] is None:
        places[_CONFIGURED] = arguments.get(CONFIGURED_ROOT)
    problems: list[Problem] = []
    if "pvc_path" in known and "output_model" in known and root_of(known, arguments) is None:
        problems += _without_root(is_remote(places["output_model"] or ""), values, arguments)
    for name, place in places.items():
        broken = _broken(name, place, config) if place else None
        if broken:
            problems.append(Problem(name, shown(str(place)), *broken))
    return problems


def _without_root(model_is_remote: bool, values: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[Problem]:
    cure = "Name a directory of a claim, pvc_path='pvc://<claim>/<path>', or pvc_path under [finetune]"
    lost = "nothing that a pod writes to its own disk is there when it has gone"
    if not model_is_remote:
        remote = "or a remote output_model such as s3://<bucket>/<path>"
        yield Problem("pvc_path", None, f"{lost}, so the model would be lost", f"{cure}, {remote}")
        return
    workers = values.get("resource_num_workers", 1)
    if workers > 1:
        rule = f"the pods of training_resource_num_workers={workers} meet in a directory that all of them see"
        yield Problem("pvc_path", None, rule, f"{cure}; the claim must be ReadWriteMany")
    if arguments.get("keep", "model") != "model":
        yield Problem("keep", arguments["keep"], f"{lost}, so no file of the run would stay", cure)


def _broken(name: str, place: str, config: Mapping[str, Any]) -> Broken | None:
    read = name in READ
    try:
        places = Places(config, read=[place] if read else (), written=[] if read else [place])
    except CannotRender as error:
        return error.rule, error.cure
    if is_remote(place):
        # A task's own directory is judged with the other texts, the configured one only here.
        return no_directory(place) if name == _CONFIGURED else None
    return _is_no_place(name, place) if read else _does_not_last(name, place, places)


def _is_no_place(name: str, place: str) -> Broken | None:
    if scheme(place) or place.startswith("/") or hub_name(place, HUB_KINDS[name]):
        return None
    rule = "it is neither an absolute path in the pod nor a URI nor a HuggingFace id"
    return rule, "Write e.g. /path, pvc://<claim>/<path>, s3://<bucket>/<path> or <organisation>/<name>"


def _does_not_last(name: str, place: str, places: Places) -> Broken | None:
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
