"""The child process: checks and trains, so that training-hub is imported once, and tells its parent what it did.

Where several processes train, one checks and leaves what it has prepared as a file, and each of them begins there.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import backends, storage
from airflow_provider_finetune.runner.check import check
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import explain
from airflow_provider_finetune.runner.prepared import Prepared
from airflow_provider_finetune.runner.publishing import publish
from airflow_provider_finetune.runner.workdir import WorkDir

_NAMES = {"sft": "SFT", "lora_sft": "LoRA"}
_VERSIONS = ("training-hub", "torch", "transformers", "trl", "peft")


def main(work_dir: WorkDir, *, only: str | None = None, every_row: bool = False) -> int:
    """Run the child.

    :param work_dir: the attempt; its spec lies there.
    :param only: ``check`` ends there; ``prepare`` leaves what it has prepared for processes that ``train``; one process
        does both.
    :param every_row: look at lengths and mask of all rows at once, not of a sample first.
    :return: exit status; the reason has been told to the parent.
    """
    events = Events.from_environment()
    try:
        spec = TrainingSpec.from_json(work_dir.spec.read_text(encoding="utf-8"))
        if only == "train":
            prepared = Prepared.from_json(work_dir.prepared.read_text(encoding="utf-8"))
        else:
            with events.timed("seconds_check"):
                prepared = check(spec, work_dir, events, to_train=only != "check", every_row=every_row)
            events.report(versions=_versions())
        if only == "prepare":
            storage.put_text(prepared.to_json(), work_dir.prepared)
        elif only == "train" and os.environ["RANK"] != "0":
            _call_training_hub(spec.algorithm, prepared)
        elif only != "check":
            _train(spec, work_dir, prepared, events)
    except BaseException as error:
        traceback.print_exc()
        events.failed(asdict(explain(error)))
        return 1
    return 0


def _train(spec: TrainingSpec, work_dir: WorkDir, prepared: Prepared, events: Events) -> None:
    events.say(f"training starts on the CPU ({_NAMES[spec.algorithm]} by TRL, float32)")
    events.training()
    with events.timed("seconds_training"):
        _call_training_hub(spec.algorithm, prepared)
    publish(spec, work_dir, prepared, events)


def _call_training_hub(algorithm: str, prepared: Prepared) -> None:
    import training_hub

    backend = backends.of(algorithm).register()
    getattr(training_hub, algorithm)(**{**prepared.keywords, "backend": backend})


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
