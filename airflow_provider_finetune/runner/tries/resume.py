"""What a training goes on from, decided when everything is known of it: data, base model, device, processes."""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import storage
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.fates import effective_parameters
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.tries import checkpoints
from airflow_provider_finetune.runner.tries.checkpoints import Checkpoint
from airflow_provider_finetune.runner.tries.lineage import nothing_to_go_on_from
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_WHAT = {
    "dataset": "the data",
    "base_model": "the base model",
    "device": "the device",
    "processes": "the number of processes",
}
"""What decides with the spec whether a checkpoint is of this training."""


def begin(spec: TrainingSpec, work_dir: WorkDir, origin: dict[str, Any], events: Events) -> None:
    """Leave in the output directory the checkpoint that this training goes on from, or nothing.

    :param spec: whether it may or must go on.
    :param work_dir: the lineage.
    :param origin: what it trains on, by the names of :data:`_WHAT`.
    :param events: takes a line.
    :raises UserError: it must go on, and cannot.
    """
    checkpoints.forget_broken(work_dir.checkpoints)
    found = checkpoints.newest(work_dir.checkpoints)
    why_not = _why_not(found, spec, work_dir, origin)
    if found and not why_not:
        _count_steps_that_were_done(found.path, spec)
        events.say(f"this training goes on from {found.unit} {found.number} of an earlier try ({found.path})")
        events.report(metrics={f"resumed_from_{found.unit}": found.number})
        if (found.path / "training_state.pt").exists():
            # It restores the schedule, and not the rate that the schedule has given to the optimizer.
            name = "rhai-innovation-mini-trainer"
            events.warn(
                f"{name} {version(name)} takes the next step with the learning rate that its schedule begins with"
            )
        return
    if spec.resume == "require":
        raise nothing_to_go_on_from(why_not)
    if found:
        events.warn(f"this training starts anew, since {why_not}")
    shutil.rmtree(work_dir.checkpoints, ignore_errors=True)
    storage.put_text(json.dumps(origin, indent=1), work_dir.origin)


def _why_not(found: Checkpoint | None, spec: TrainingSpec, work_dir: WorkDir, origin: dict[str, Any]) -> str:
    if found is None:
        return f"no try has saved a checkpoint in {work_dir.checkpoints} that is whole"
    try:
        left = json.loads(work_dir.origin.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it is not known what the checkpoint {found.path} was trained on"
    changed = [what for name, what in _WHAT.items() if left.get(name) != origin[name]]
    if changed:
        have = "has" if len(changed) == 1 else "have"
        return f"{' and '.join(changed)} {have} changed since the checkpoint {found.path}"
    if _later_epoch(found.path, spec, work_dir):
        # It looks for the checkpoint's step in the steps of one epoch, and skips all that is left to be trained.
        return f"training-hub {version('training-hub')} goes on wrongly where the first epoch is over"
    return ""


def _later_epoch(checkpoint: Path, spec: TrainingSpec, work_dir: WorkDir) -> bool:
    """Whether a checkpoint of training-hub's own full fine-tuning lies where it is not gone on from rightly."""
    import torch

    if (state := checkpoint / "training_state.pt").exists():
        saved, epochs = torch.load(state, weights_only=False), effective_parameters(spec)["num_epochs"]
        last = Series(MetricsFollower(work_dir.checkpoints, "osft", epochs).points()).last
        # The step at the end of an epoch is counted as within it.
        over = last is not None and last.total_steps is not None and saved["step"] * epochs >= last.total_steps
        return int(saved["epoch"]) > 0 or (over and epochs > 1)
    if (metadata := checkpoint / "training_metadata.json").exists():
        # Saved by torch in spite of its name; without a step it lies between two epochs.
        saved = torch.load(metadata, weights_only=False)
        return "global_step" in saved and int(saved["current_epoch"]) > 0
    return False


def _count_steps_that_were_done(checkpoint: Path, spec: TrainingSpec) -> None:
    """Correct a checkpoint of instructlab-training within the first epoch.

    It counts the step that it was stopped in as done, so that its rows would never be trained on.
    """
    import torch

    if not (metadata := checkpoint / "training_metadata.json").exists():
        return
    saved = torch.load(metadata, weights_only=False)
    done = math.ceil(saved["samples_seen"] / effective_parameters(spec)["effective_batch_size"])
    if saved.get("global_step", done) != done:
        corrected = metadata.with_name(f".{metadata.name}")
        torch.save({**saved, "global_step": done}, corrected)
        corrected.replace(metadata)
