"""The model that a backend has left: found, proven where it lies, and put in its place whole."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

from airflow_provider_finetune.contract.spec import SCRATCH_DIRECTORY, TrainingSpec
from airflow_provider_finetune.runner import arrival, forecast, memory, merging, proof, storage
from airflow_provider_finetune.runner.algorithms import trusts_remote_code
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.fates import effective_parameters
from airflow_provider_finetune.runner.prepared import Prepared
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.storage import Place
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_PAUSES = (10.0, 30.0, 90.0, 270.0)
"""Seconds between two tries to publish: most stores are back after some minutes, and a model may have cost days."""


def targets(spec: TrainingSpec, model: Path) -> dict[str, Place]:
    """Return where which kind of model is published.

    :param spec: says where to, and which kinds of a LoRA training.
    :param model: the place where the spec names none.
    """
    place = storage.place(spec.output_model or str(model), "output_model", spec.mounts)
    kinds = _kinds(spec)
    return {kind: place if len(kinds) == 1 else place.child(kind) for kind in kinds}


def _kinds(spec: TrainingSpec) -> tuple[str, ...]:
    """Return which kinds of model are published, last the one that is the run's model."""
    if spec.algorithm != "lora_sft":
        return ("full",)
    return ("adapter", "merged") if spec.output_kind == "both" else (spec.output_kind,)


def publish(spec: TrainingSpec, work_dir: WorkDir, prepared: Prepared, events: Events) -> None:
    """Prove the model and put it in place.

    :param spec: says where to.
    :param work_dir: the attempt, whose training has ended.
    :param prepared: what the model is held against.
    :param events: takes its place.
    :raises RunFailed: there is no model, or none that anybody could use.
    """
    epochs = effective_parameters(spec)["num_epochs"]
    series = Series(MetricsFollower(work_dir.checkpoints, spec.algorithm, epochs).points())  # type: ignore[arg-type]
    _refuse_non_finite(spec, series)
    _refuse_early_end(spec, work_dir, series)
    found = find(work_dir.checkpoints, spec.algorithm)
    if found is None:
        raise RunFailed(
            "infrastructure",
            "no_model",
            f"The training ended without an error and without a model in {work_dir.checkpoints}",
            "The training log says what was saved",
        )
    _say_if_early(found, series, events)
    arrived = work_dir.proven
    arrival.collect(found, arrived)
    prove = _prove_lora if spec.algorithm == "lora_sft" else _prove_full
    proven = prove(spec, arrived, prepared, events)
    places = {kind: _put(kind, proven[kind], spec, work_dir, events) for kind in _kinds(spec)}
    for directory in proven.values():
        shutil.rmtree(directory, ignore_errors=True)
    *beside, (kind, place) = places.items()
    events.report(model_uri=place.uri, model_path=str(place.path) if place.path else None, model_kind=kind)
    for _, adapter in beside:
        events.report(adapter_uri=adapter.uri)


def _put(kind: str, directory: Path, spec: TrainingSpec, work_dir: WorkDir, events: Events) -> Place:
    """Put a model in its place, and try again after a while where that cannot be reached."""
    pauses = iter(_PAUSES)
    while True:
        try:
            # Made anew each time: where it has a connection, that may be what has broken.
            place = targets(spec, work_dir.model)[kind]
            place.put_model(directory, events.say)
            return place
        except RunFailed as failed:
            pause = next(pauses, None) if failed.failure.cause == "output_unreachable" else None
            if pause is None:
                if not directory.is_relative_to(SCRATCH_DIRECTORY):
                    cure = f"{failed.failure.cure}. The model is whole in {directory}"
                    failed.failure = replace(failed.failure, cure=cure)
                raise
            # Not all at once, where a store has failed many trainings.
            seconds = pause * random.uniform(1, 1.5)
            events.warn(f"{failed.failure.message}. It is published again in {seconds:.0f} s")
        time.sleep(seconds)


def _prove_full(spec: TrainingSpec, arrived: Path, prepared: Prepared, events: Events) -> dict[str, Path]:
    trust = trusts_remote_code(spec)
    arrival.complete(arrived, prepared.base.path, trust)
    if dtype := arrival.narrow(arrived, prepared.base.path):
        events.say(f"the weights were trained in float32 and are published in {dtype}, as those of the base model")
    proof.prove_full(arrived, prepared.base.path, prepared.chat_template, trust_remote_code=trust)
    return {"full": arrived}


def _prove_lora(spec: TrainingSpec, arrived: Path, prepared: Prepared, events: Events) -> dict[str, Path]:
    trust = trusts_remote_code(spec)
    base = prepared.base
    arrival.name_base_model(arrived, base.path, base.reference, base.revision)
    proof.prove_adapter(arrived, base.path, prepared.chat_template, trust_remote_code=trust)
    if spec.output_kind == "adapter":
        return {"adapter": arrived}
    merged = arrived.with_name("merged")
    forecast.ensure_memory_suffices(merging.memory_needed(base.weight_bytes), events, available=memory.available())
    events.say(
        f"merging the adapter into its base model ({forecast.readable(base.weight_bytes)} of weights) on the CPU"
    )
    with events.timed("seconds_merging"):
        merging.merge(arrived, base.path, merged, trust_remote_code=trust)
        likeness = proof.prove_merged(
            merged,
            arrived,
            base.path,
            prepared.chat_template,
            proof.rows_to_compare(Path(prepared.keywords["data_path"]), arrived),
            trust_remote_code=trust,
        )
    events.say(
        f"merged: its logits differ by {likeness.difference:.2%} from those of base model and adapter, which the "
        f"adapter has changed by {likeness.effect:.2%}"
    )
    if likeness.loses_much:
        events.warn(
            f"the merged model has lost much of what the adapter has learned: most of its changes are smaller than "
            f"{likeness.dtype} can add to the base model's weights. Publish the adapter, or train longer"
        )
    return {"adapter": arrived, "merged": merged}


def find(checkpoints: Path, algorithm: str) -> Path | None:
    """Return the directory of the last model that was saved, ``None`` where there is none.

    Where ``save_best_val_loss`` has asked for it, that is the last of those with the lowest validation loss so far.

    :param checkpoints: training-hub's ``ckpt_output_dir``.
    :param algorithm: ``lora_sft`` saves into it; the others into ``hf_format/samples_<samples seen>``, or
        ``hf_format/last_epoch`` where only one is kept.
    """
    if algorithm == "lora_sft":
        return checkpoints if (checkpoints / "adapter_model.safetensors").is_file() else None
    models = [path for path in (checkpoints / "hf_format").glob("*") if storage.holds_model(path)]
    return max(models, key=lambda path: (path.name.endswith(_BEST), _samples(path)), default=None)


_BEST = "_best_val_loss"


def _samples(checkpoint: Path) -> float:
    # mini-trainer counts them in floating point.
    number = checkpoint.name.removeprefix("samples_").removesuffix(_BEST).removesuffix(".0")
    return int(number) if number.isdecimal() else float("inf")


def _say_if_early(found: Path, series: Series, events: Events) -> None:
    seen = series.last.samples if series.last else None
    if not seen or _samples(found) >= seen:
        return
    early = f"the model is that after {_samples(found)} of {seen} samples, the last that "
    if found.name.endswith(_BEST):
        events.warn(early + "had the lowest validation loss, as extra_args['save_best_val_loss'] asks")
    else:
        events.warn(
            early + "training_save_samples asked to save: leave training_checkpoint_at_epoch out for that of the end"
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


def _refuse_early_end(spec: TrainingSpec, work_dir: WorkDir, series: Series) -> None:
    """A library that was stopped, or has lost count, returns as if it had trained to the end."""
    last = series.last
    if last is None:
        return
    early = last.total_steps is not None and last.step < last.total_steps
    if spec.algorithm == "sft" and last.epoch is not None:
        # instructlab-training packs batches by length, so that an epoch may have fewer steps than it says.
        early = early and last.epoch <= effective_parameters(spec)["num_epochs"] - 1
    if work_dir.stopped.exists() or early:
        raise RunFailed(
            "infrastructure",
            "ended_early",
            f"The training ended without an error at step {last.step} of {last.total_steps}. No model was published",
            "A retry goes on from the last checkpoint, where there is one",
        )
