"""The child process: checks and trains, so that training-hub is imported once, and tells its parent what it did.

Where several processes train, one checks and leaves what it has prepared as a file, and each of them begins there.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import backends, offspring, storage
from airflow_provider_finetune.runner.check import check
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed, explain
from airflow_provider_finetune.runner.nodes import Placement, placement
from airflow_provider_finetune.runner.prepared import Prepared
from airflow_provider_finetune.runner.publishing import publish
from airflow_provider_finetune.runner.tries import resume
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_NAMES = {"osft": "OSFT", "sft": "SFT", "lora_sft": "LoRA"}
_HOW = {"cpu": "the CPU ({} by TRL, float32)", "cuda": "CUDA ({} by training-hub's own backend)"}
_OF_OTHER_TRAININGS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
_VERSIONS = (
    *("training-hub", "torch", "transformers", "trl", "peft"),
    *("rhai-innovation-mini-trainer", "instructlab-training", "unsloth", "flash-attn"),
)


def main(work_dir: WorkDir, *, only: str | None = None, every_row: bool = False) -> int:
    """Run the child.

    :param work_dir: the attempt; its spec lies there.
    :param only: ``check`` ends there; ``prepare`` leaves what it has prepared for processes that ``train``; one process
        does both.
    :param every_row: look at lengths and mask of all rows at once, not of a sample first.
    :return: exit status; the reason has been told to the parent.
    """
    events = Events.from_environment()
    # The libraries' file by which a training is asked to save lies where all trainings of a machine see it; its name is
    # read when they are imported.
    os.environ.setdefault("CHECKPOINT_TRIGGER_FILENAME", f"checkpoint_requested_{os.getpid()}")
    try:
        spec = TrainingSpec.from_json(work_dir.spec.read_text(encoding="utf-8"))
        if only == "train":
            prepared = Prepared.from_json(work_dir.prepared.read_text(encoding="utf-8"))
        else:
            prepared = _prepare(spec, work_dir, events, to_train=only != "check", every_row=every_row)
        anew = only is None and prepared.device == "cuda" and spec.algorithm == "lora_sft"
        if only == "prepare" or anew:
            storage.put_text(prepared.to_json(), work_dir.prepared)
        if anew:
            _begin_anew(work_dir)
        elif only in (None, "train"):
            _train(spec, work_dir, prepared, events)
    except BaseException as error:
        traceback.print_exc()
        events.failed(asdict(explain(error)))
        return 1
    return 0


def _prepare(spec: TrainingSpec, work_dir: WorkDir, events: Events, *, to_train: bool, every_row: bool) -> Prepared:
    with events.timed("seconds_check"):
        prepared = check(spec, work_dir, events, to_train=to_train, every_row=every_row)
    events.report(versions=_versions())
    if to_train:
        origin = {**prepared.origin, "processes": placement(spec, os.environ).processes}
        resume.begin(spec, work_dir, origin, events)
    return prepared


def _begin_anew(work_dir: WorkDir) -> None:
    """Become the process that trains: Unsloth must be imported before the libraries that the check has imported."""
    program = [sys.executable, "-m", "airflow_provider_finetune.runner", "work", "--only", "train"]
    os.execv(sys.executable, [*program, "--work-dir", str(work_dir.path)])


def _train(spec: TrainingSpec, work_dir: WorkDir, prepared: Prepared, events: Events) -> None:
    """Train, and publish what the first process of all has trained."""
    # A process that torchrun has started knows its rank, and no longer the node's place.
    here = Placement() if "RANK" in os.environ else placement(spec, os.environ)
    first = os.environ.get("RANK", str(here.node)) == "0"
    if first:
        events.say(f"training starts on {_HOW[prepared.device].format(_NAMES[spec.algorithm])}")
        events.training(prepared.device)
    with events.timed("seconds_training") if first else nullcontext():
        try:
            _call_training_hub(spec.algorithm, prepared, here)
        except Exception as error:
            ended = offspring.why_ended(work_dir.checkpoints, spec.algorithm, here.node)
            if prepared.device == "cpu" or ended is None:
                raise
            raise RunFailed(ended.failure_class, ended.cause, ended.message, ended.cure) from error
    if first:
        publish(spec, work_dir, prepared, events)


def _call_training_hub(algorithm: str, prepared: Prepared, here: Placement) -> None:
    if prepared.device == "cuda" and algorithm == "lora_sft":
        import unsloth  # noqa: F401  # before transformers and TRL, which it changes
    import training_hub

    several = {}
    if prepared.device == "cuda" and algorithm != "lora_sft":
        # training-hub takes what stands there for every option that it is not given, torchrun as well, and mini-trainer
        # names its metrics file by NODE_RANK.
        for name in [name for name in os.environ if name.startswith("PET_") or name in _OF_OTHER_TRAININGS]:
            del os.environ[name]
        if here.master:
            several = {"node_rank": here.node, "master_addr": here.master[0], "master_port": here.master[1]}
    backend = backends.register(algorithm, prepared.device)
    getattr(training_hub, algorithm)(**prepared.keywords, **several, backend=backend)


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
