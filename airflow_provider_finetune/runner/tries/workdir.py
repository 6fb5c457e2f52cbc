"""The files of one attempt: where each lies, and which attempt this is.

``<task instance>/<n>`` is one lineage: the tries of one training, each of which goes on where the one before has ended.
A lineage that has its model, and one of another training, is never written to again: a new one starts beside it
(``lineage.py``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_finetune.runner import storage
from airflow_provider_finetune.runner.failures import RunFailed, UserError, is_disk_full


@dataclass(frozen=True)
class WorkDir:
    """Layout of one attempt's directory."""

    path: Path

    @property
    def spec(self) -> Path:
        """The spec as it was asked for."""
        return self.path / "spec.json"

    @property
    def prepared(self) -> Path:
        """What the check hands to a training of several processes."""
        return self.path / "prepared.json"

    @property
    def origin(self) -> Path:
        """What the checkpoints were trained on."""
        return self.path / "origin.json"

    @property
    def stopped(self) -> Path:
        """There where the training was asked to end."""
        return self.path / "stopped"

    @property
    def proven(self) -> Path:
        """The model while it is held against its base model."""
        return self.path / "proven"

    @property
    def merged(self) -> Path:
        """The merged model while it is held against base model and adapter."""
        return self.path / "merged"

    @property
    def nodes(self) -> Path:
        """What the nodes of one training tell each other."""
        return self.path / "nodes"

    def log(self, node: int = 0) -> Path:
        """Everything that the libraries and we have printed on one node."""
        return self.path / (f"train-node-{node}.log" if node else "train.log")

    def scratch(self, node: int = 0) -> Path:
        """Caches and temporary files of one node; goes with the data."""
        return self.data / f"node-{node}" if node else self.data

    @property
    def outcome(self) -> Path:
        """The full form of the outcome."""
        return self.path / "outcome.json"

    @property
    def data(self) -> Path:
        """Processed training data, unless ``training_data_output_dir`` names another place."""
        return self.path / "data"

    def processed(self, asked_for: str | None) -> Path:
        """Where tokenised data goes: in a directory of this attempt, also where several attempts were given one.

        :param asked_for: ``training_data_output_dir``.
        :raises UserError: it is no local place.
        """
        if not asked_for:
            return self.data
        identity = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        return storage.local_path(asked_for, "training_data_output_dir") / identity

    @property
    def checkpoints(self) -> Path:
        """training-hub's output directory."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The model, unless ``output_model`` names another place."""
        return self.path / "model"

    @property
    def chart(self) -> Path:
        """The loss chart."""
        return self.path / "loss.html"

    @property
    def metrics(self) -> Path:
        """The metrics, unless ``output_metrics`` names another place."""
        return self.path / "metrics.json"


def create(task_instance: Path) -> WorkDir:
    """Make the directory of a new lineage below the task instance's.

    :param task_instance: ``TrainingSpec.work_dir``.
    :raises RunFailed: the directory cannot be written.
    """
    # An outcome names places by URIs, which have no relative form.
    task_instance = task_instance.absolute()
    try:
        task_instance.mkdir(parents=True, exist_ok=True)
        return WorkDir(_next_lineage(task_instance))
    except OSError as error:
        if is_disk_full(error):
            raise RunFailed(
                "resources",
                "disk_full",
                f"The disk of the work directory {task_instance} is full",
                "Free space there, or set pvc_path to a directory on a larger disk",
            ) from error
        raise UserError(
            "work_dir_not_writable",
            f"The work directory {task_instance} cannot be written: {error.strerror or error}",
            "Give the user that runs the training the right to write there, or set pvc_path to another directory",
        ) from error


def lineages(task_instance: Path) -> list[WorkDir]:
    """Return the directories of all lineages, the newest first; none where there is none yet or nothing can be read.

    :param task_instance: ``TrainingSpec.work_dir``.
    """
    try:
        numbers = sorted(int(entry.name) for entry in task_instance.absolute().iterdir() if entry.name.isdecimal())
    except OSError:
        return []
    return [WorkDir(task_instance.absolute() / str(number)) for number in reversed(numbers)]


def _next_lineage(task_instance: Path) -> Path:
    number = max((int(found.path.name) for found in lineages(task_instance)), default=0) + 1
    while True:
        path = task_instance / str(number)
        try:
            path.mkdir()
        except FileExistsError:
            # Another attempt of the same task, such as one whose worker was thought lost, was quicker.
            number += 1
        else:
            return path
