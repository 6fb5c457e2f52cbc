"""The child process: checks and trains, so that training-hub is imported once, and tells its parent what it did."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import model, storage
from airflow_provider_finetune.runner.check import Prepared, check
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed, UserError, explain
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower, metrics_file
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.workdir import WorkDir

_VERSIONS = ("training-hub", "torch", "transformers", "trl", "peft")


def main(work_dir: WorkDir, *, check_only: bool) -> int:
    """Run the child.

    :param work_dir: the attempt; its spec lies there.
    :param check_only: end after the check.
    :return: exit status; the reason has been told to the parent.
    """
    events = Events.from_environment()
    try:
        spec = TrainingSpec.from_json(work_dir.spec.read_text(encoding="utf-8"))
        with events.timed("seconds_check"):
            prepared = check(spec, work_dir, events)
        events.report(versions=_versions())
        if not check_only:
            _train(spec, work_dir, prepared, events)
    except BaseException as error:
        traceback.print_exc()
        events.failed(asdict(explain(error)))
        return 1
    return 0


def _train(spec: TrainingSpec, work_dir: WorkDir, prepared: Prepared, events: Events) -> None:
    import training_hub

    from airflow_provider_finetune.runner.backends import trl

    events.say("training starts on the CPU (LoRA by TRL, float32)")
    events.training()
    keywords = {**prepared.keywords, "backend": trl.register()}
    with events.timed("seconds_training"):
        training_hub.lora_sft(**keywords)
    _publish_adapter(spec, work_dir, prepared, events)


def _publish_adapter(spec: TrainingSpec, work_dir: WorkDir, prepared: Prepared, events: Events) -> None:
    """Prove the adapter where the backend wrote it, then put it in place whole."""
    _refuse_non_finite(spec, work_dir)
    if not (work_dir.checkpoints / "adapter_model.safetensors").is_file():
        raise RunFailed(
            "infrastructure",
            "no_model",
            f"The training ended without an error and without a model in {work_dir.checkpoints}",
            "The training log says what was saved",
        )
    trust = bool(spec.extra_args.get("trust_remote_code"))
    arrived = work_dir.path / "proven"
    _link_model_files(work_dir.checkpoints, arrived)
    model.prove_adapter(arrived, prepared.model, prepared.tokenizer.chat_template, trust_remote_code=trust)
    target = storage.local_path(spec.output_model, "output_model") if spec.output_model else work_dir.model
    storage.put_directory(arrived, target)
    shutil.rmtree(arrived, ignore_errors=True)
    events.report(model_uri=target.as_uri(), model_path=str(target), model_kind="adapter")
    _forget(spec, work_dir)


def _refuse_non_finite(spec: TrainingSpec, work_dir: WorkDir) -> None:
    """A model that has seen NaN or infinite losses is no model, though its file may look like one."""
    summary = Series(MetricsFollower(work_dir.checkpoints, "lora_sft", epochs=1).points()).summary()
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
        for entry in work_dir.checkpoints.iterdir():
            # The parent still reads the metrics. What cannot be removed harms no model.
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != metrics_file(work_dir.checkpoints, "lora_sft"):
                with suppress(OSError):
                    entry.unlink()


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
