"""One try of a task on this machine: where it works, what has no effect here, and the training itself."""

from __future__ import annotations

from pathlib import Path

from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.contract.rules import credential_names
from airflow_provider_finetune.operators.arguments import none_if_empty, seconds
from airflow_provider_finetune.operators.connections import mask, resolve_secrets
from airflow_provider_finetune.operators.local_training import LocalTraining
from airflow_provider_finetune.operators.request import local_directory, local_spec, work_directory
from airflow_provider_finetune.operators.task import TaskLog, TrainingTask
from airflow_provider_finetune.settings import airflow_home, executor_is_elsewhere, setting

_WITHOUT_EFFECT = (
    "resource_cpu_per_worker",
    "resource_memory_per_worker",
    "resource_num_workers",
    "metadata_labels",
    "metadata_annotations",
)


class LocalRun:
    """The training of one try as a process of this machine.

    :param task: what to train.
    :param log: the task's.
    :param executor: the task's own executor, ``None`` for the deployment's.
    """

    def __init__(self, task: TrainingTask, log: TaskLog, executor: str | None) -> None:
        self._task, self._log = task, log
        arguments, values = task.arguments, task.values
        spec = local_spec(
            task.algorithm,
            task.documented,
            values,
            arguments,
            work_dir=work_directory(self._root(executor), *task.instance.path),
            map_index=task.instance.map_index,
        )
        self._say_what_is_different_here()
        self._training = LocalTraining(
            spec,
            python=none_if_empty(arguments["local_python"]) or setting("local_python"),
            training_envs=values["envs"],
            secrets=resolve_secrets(task.instance.task_id, arguments["secrets"] or {}),
            log=log.log,
        )

    def run(self) -> Outcome:
        """Train, and return what came of it.

        :raises TrainingFailed: the work directory cannot be written or the interpreter cannot be started.
        """
        self._log.info("Training in %s; this task holds its worker slot until it ends", self._training.work_dir)
        return self._training.run(seconds(self._task.arguments["training_timeout"]))

    def end(self) -> None:
        """Ask the runner to end, and kill it with all it started where that takes too long."""
        self._training.terminate()

    def _root(self, executor: str | None) -> Path:
        root = none_if_empty(self._task.documented["pvc_path"]) or setting("work_dir")
        if root:
            return local_directory(root)
        if executor_is_elsewhere(executor):
            self._log.warning(
                "The executor may run the next task on another machine, which does not see the model below "
                "$AIRFLOW_HOME of this one. Set pvc_path or [finetune] work_dir to a directory that all workers share"
            )
        return airflow_home() / "finetune"

    def _say_what_is_different_here(self) -> None:
        values, defaults = self._task.values, self._task.record()
        idle = [f"training_{name}" for name in _WITHOUT_EFFECT if values[name] != getattr(defaults, name)]
        idle += ["training_resource_gpu_per_worker"] if values["resource_gpu_per_worker"] > 1 else []
        idle += ["kubernetes_config"] if self._task.documented["kubernetes_config"] else []
        idle += ["deferrable"] if self._task.arguments["deferrable"] else []
        if idle:
            self._log.info(
                "Without effect with launcher='local', which takes what this machine has: %s", ", ".join(idle)
            )
        literals = credential_names(values["envs"])
        if literals:
            mask(*(values["envs"][name] for name in literals))
            self._log.warning(
                "training_envs holds %s (***) as readable text, which the DAG's source and the rendered template show. "
                "Use secrets={%r: 'conn:<connection id>'}",
                ", ".join(literals),
                literals[0],
            )
