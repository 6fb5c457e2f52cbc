"""The model that a backend has left: found, proven where it lies, and put in its place whole."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import model, storage
from airflow_provider_finetune.runner.check import Prepared
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower, metrics_file
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.workdir import WorkDir


def publish(spec: TrainingSpec, work_dir: WorkDir, prepared: Prepared, events: Events) -> None:
    """Prove the model, put it in place, and remove what ``keep`` does not ask for.

    :param spec: says where to.
    :param work_dir: the attempt, whose training has ended.
    :param prepared: what the model is held against.
    :param events: takes its place.
    :raises RunFailed: there is no model, or none that anybody could use.
    """
    series = Series(MetricsFollower(work_dir.checkpoints, spec.algorithm, epochs=1).points())  # type: ignore[arg-type]
    _refuse_non_finite(spec, series)
    found = find(work_dir.checkpoints, spec.algorithm)
    if found is None:
        raise RunFailed(
            "infrastructure",
            "no_model",
            f"The training ended without an error and without a model in {work_dir.checkpoints}",
            "The training log says what was saved",
        )
    _say_if_early(found, series, events)
    arrived = work_dir.path / "proven"
    _link_model_files(found, arrived)
    kind, prove = ("adapter", model.prove_adapter) if spec.algorithm == "lora_sft" else ("full", model.prove_full)
    trust = bool(spec.extra_args.get("trust_remote_code"))
    prove(arrived, prepared.model, prepared.chat_template, trust_remote_code=trust)
    target = storage.local_path(spec.output_model, "output_model") if spec.output_model else work_dir.model
    storage.put_directory(arrived, target)
    shutil.rmtree(arrived, ignore_errors=True)
    events.report(model_uri=storage.uri_of(target, spec.mounts), model_path=str(target), model_kind=kind)
    _forget(spec, work_dir)


def find(checkpoints: Path, algorithm: str) -> Path | None:
    """Return the directory of the last model that was saved, ``None`` where there is none.

    :param checkpoints: training-hub's ``ckpt_output_dir``.
    :param algorithm: ``lora_sft`` saves into it; the others into ``hf_format/samples_<samples seen>``, or
        ``hf_format/last_epoch`` where only one is kept.
    """
    if algorithm == "lora_sft":
        return checkpoints if (checkpoints / "adapter_model.safetensors").is_file() else None
    models = [path for path in (checkpoints / "hf_format").glob("*") if storage.holds_model(path)]
    return max(models, key=_samples, default=None)


def _samples(checkpoint: Path) -> float:
    number = checkpoint.name.removeprefix("samples_")
    return int(number) if number.isdecimal() else float("inf")


def _say_if_early(found: Path, series: Series, events: Events) -> None:
    seen = series.last.samples if series.last else None
    if seen and _samples(found) < seen:
        events.warn(
            f"the model is that after {_samples(found)} of {seen} samples, the last that training_save_samples asked "
            "to save: leave training_checkpoint_at_epoch out for that of the end"
        )


def _refuse_non_finite(spec: TrainingSpec, series: Series) -> None:
    """A model that has seen NaN or infinite losses is no model, though its file may look like one."""
    summary = series.summary()
    # In fp16 the loss scaler skips steps with infinite gradients, so only the end counts there.
    if summary["not_finite"] or (summary["non_finite_steps"] and not spec.extra_args.get("fp16")):
        raise UserError(
            "non_finite_loss",
            f"Loss or gradient was not finite at {summary['non_finite_steps']} of {summary['steps']} steps, first at "
            f"step {summary['first_non_finite_step']}. No model was published",
            "Lower the learning rate (training_learning_rate), warm up longer (training_lr_warmup_steps), or look "
            "for broken rows in the data",
        )


def _link_model_files(source: Path, target: Path) -> None:
    """Bring the model's files together without what the trainer keeps beside them, and without a second copy."""
    target.mkdir()
    for entry in source.iterdir():
        if entry.is_file() and entry.name not in ("training_args.bin", "training_metrics.jsonl"):
            try:
                os.link(entry, target / entry.name)
            except OSError:
                shutil.copy2(entry, target / entry.name)


def _forget(spec: TrainingSpec, work_dir: WorkDir) -> None:
    """Remove what ``keep`` does not ask for, now that the model is in its place."""
    if spec.keep != "all":
        shutil.rmtree(work_dir.data, ignore_errors=True)
    if spec.keep == "model":
        metrics = metrics_file(work_dir.checkpoints, spec.algorithm)  # type: ignore[arg-type]
        for entry in work_dir.checkpoints.iterdir():
            # The parent still reads the metrics. What cannot be removed harms no model.
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != metrics:
                with suppress(OSError):
                    entry.unlink()
