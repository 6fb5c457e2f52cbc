"""What a training makes in a cluster: its workload, and the ConfigMap that brings the runner.

All raise :class:`~airflow_provider_finetune.cluster.refusals.Refused` as the hook's own requests do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_finetune.cluster.asked import asked
from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.cluster.refusals import Refused, foreign, refused, trainer_too_old, wrong_setting
from airflow_provider_finetune.launchers.observed import DOMAIN, IDENTITY
from airflow_provider_finetune.launchers.trainjob import TrainerApi, forms_with
from airflow_provider_finetune.settings import setting

_trainer_api: dict[str, TrainerApi] = {}
"""Form of a TrainJob that the Trainer behind each connection took last."""


async def ensure_config_map(hook: TrainingHook, manifest: Mapping[str, Any]) -> None:
    """Make a ConfigMap unless it is there, in one request; one of the same name and other content is an error.

    :param hook: of the cluster.
    :param manifest: the ConfigMap, immutable.
    :raises Refused: e.g. there is one with other content.
    """
    path = hook.path("configmaps", manifest["metadata"]["name"])
    try:
        await hook.request("PATCH", path, query={"fieldManager": DOMAIN}, body=manifest)
    except Refused as error:
        # Another one's fields, or an immutable field that would change.
        if error.status not in (409, 422):
            raise
        what = asked(hook.conn_id, "PATCH", path)
        raise refused(what, foreign(what, "its content is another"), status=409) from error


async def create_trainjob(hook: TrainingHook, render: Callable[[TrainerApi], Mapping[str, Any]]) -> dict[str, Any]:
    """Make a TrainJob and return it; one of the same name and identity, made by another process, is as good.

    The newest form is tried first and the older one where the Trainer does not know it; which one it took is
    remembered in this process, and ``[finetune] trainer_api`` says it beforehand.

    :param hook: of the cluster.
    :param render: gives the manifest in a form.
    :raises Refused: e.g. the Trainer is too old, or the name is a stranger's.
    """
    forms = _forms(hook.conn_id)
    ruled_out: set[TrainerApi] = set()
    for form in forms:
        if form in ruled_out:
            continue
        try:
            made = await create_job(hook, render(form))
        except Refused as error:
            without = [forms_with(field) for field in error.fields]
            # A field that all forms have, or none, is somebody's mistake, and each would be refused for it.
            if error.cause != "unknown_field" or not all(without) or len(forms) == 1:
                raise
            ruled_out.update(*without)
            refusal = error
        else:
            _trainer_api[hook.conn_id] = form
            return made
    raise refused(refusal.where, trainer_too_old(hook.conn_id), status=refusal.status) from refusal


async def create_job(hook: TrainingHook, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Make a job and return it; one of the same name and identity, made by another process, is as good.

    :param hook: of the cluster.
    :param manifest: the object.
    :raises Refused: e.g. the name is a stranger's.
    """
    try:
        return await hook.request(
            "POST", hook.path(hook.kind.resource), query={"fieldValidation": "Strict"}, body=manifest
        )
    except Refused as error:
        if error.cause != "exists":
            raise
    path = hook.path(hook.kind.resource, manifest["metadata"]["name"])
    found = await hook.request("GET", path)
    labels = [(job["metadata"].get("labels") or {}).get(IDENTITY) for job in (manifest, found)]
    if not labels[0] or labels[0] != labels[1]:
        what = asked(hook.conn_id, "POST", path)
        raise refused(what, foreign(what, f"its label {IDENTITY} is {labels[1]!r}"), status=409)
    return found


def _forms(conn_id: str) -> list[TrainerApi]:
    """Return the forms of a TrainJob in the order in which they are tried."""
    said = setting("trainer_api")
    if said and said not in {form.value for form in TrainerApi}:
        cure = f"Set it to {' or '.join(form.value for form in TrainerApi)}, or leave it out"
        raise wrong_setting("trainer_api", said, "is no form of a TrainJob", cure)
    if said:
        return [TrainerApi(said)]
    return sorted(TrainerApi, key=lambda form: form is not _trainer_api.get(conn_id))
