"""What a run leaves behind of what it has needed."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.tries.workdir import WorkDir


def tidy(spec: TrainingSpec, work_dir: WorkDir, *, published: bool, check_only: bool = False) -> list[str]:
    """Remove what ``keep`` does not ask for, once the model is proven and in its place; before that only caches.

    Model, chart, metrics, logs, spec and outcome always stay. A run that has failed keeps its checkpoints and its
    processed data; only what was downloaded and cached beside the data goes, since it can be had again. What cannot be
    removed harms no model.

    :param spec: its ``keep``.
    :param work_dir: the lineage, in which nothing runs any more.
    :param published: the model is in its place.
    :param check_only: nothing was to be trained, so the data goes as well.
    :return: what was there and is gone, as words for people.
    """
    if not published:
        _forget_caches(work_dir.data)
    if not (published or check_only) or spec.keep == "all":
        return []
    places = {work_dir.data: "data"}
    # A check may have refused that place.
    with suppress(UserError):
        places[work_dir.processed(spec.parameters.get("data_output_dir"))] = "data"
    if published and spec.keep == "model":
        places[work_dir.checkpoints] = "checkpoints"
    removed = {what: None for place, what in places.items() if place.is_dir()}
    for place in (*places, work_dir.nodes):
        shutil.rmtree(place, ignore_errors=True)
    for file in (work_dir.prepared, *([work_dir.origin] if work_dir.checkpoints in places else [])):
        file.unlink(missing_ok=True)
    return list(removed)


def _forget_caches(data: Path) -> None:
    """Leave the files of processed data; caches, downloads and temporary files are directories beside them."""
    with suppress(OSError):
        for entry in data.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
        data.rmdir()
