"""What must be there before anything is read: libraries, a device, and places that results may go to."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from airflow_provider_finetune.contract.last_words import meaning
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms, backends, publishing, storage
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.tries.workdir import WorkDir


def ensure_outputs_writable(spec: TrainingSpec, work_dir: WorkDir, events: Events) -> None:
    """Try to write where results will go, and refuse what publishing a model would remove.

    :param spec: names the places.
    :param work_dir: the place of what it names none for.
    :param events: takes what is odd and no error.
    :raises RunFailed: a result could not be put there.
    """
    for argument, name in (("output_metrics", "metrics.json"), ("output_loss_chart", "loss.html")):
        uri = getattr(spec, argument)
        if uri:
            storage.output_place(uri, argument, name).ensure_writable(events.warn)
    if not spec.output_model:
        return
    if spec.output_kind == "both" and (root := storage.place(spec.output_model, "output_model")).holds_model():
        raise UserError(
            "output_in_use",
            f"output_model: {root.uri} holds a model, and output_kind='both' puts the directories 'adapter' and "
            "'merged' there",
            "Name another directory in output_model, or remove the model from this one",
        )
    for place in publishing.targets(spec, work_dir.model).values():
        place.ensure_replaceable(_needed(spec))
        place.ensure_writable(events.warn)


def _needed(spec: TrainingSpec) -> list[Path | str]:
    return [
        storage.local_path(place, "") if storage.scheme(place) in (None, "file") else place
        for place in (spec.base_model, spec.dataset, spec.work_dir)
    ]


def ensure_installed() -> None:
    """Refuse an interpreter without the libraries.

    :raises UserError: it lacks one.
    """
    _ensure_there(
        {"training_hub": "training-hub", "trl": "trl", "peft": "peft"},
        "Install 'airflow-provider-finetune[local]' into an environment and name its interpreter in local_python or "
        "[finetune] local_python",
    )


def ensure_installed_on_cuda(spec: TrainingSpec) -> None:
    """Refuse an interpreter that lacks what training-hub's own backend needs beside training-hub.

    :param spec: what is to be trained.
    :raises UserError: it lacks something.
    """
    cure = "Use an image or interpreter with training-hub's extras, training-hub[cuda,lora], or train on the CPU "
    cure += "(training_resource_gpu_per_worker=0)"
    if spec.algorithm == "lora_sft":
        return _ensure_there({"unsloth": "unsloth"}, cure)
    if spec.algorithm == "sft":
        does_without = bool(spec.extra_args.get("disable_flash_attn"))
        cure += "; extra_args={'disable_flash_attn': True} pads rows instead of packing them, which is slower"
    else:
        # What mini-trainer's own tests set.
        does_without = os.environ.get("TESTING", "").lower() == "true"
    _ensure_there({} if does_without else {"flash_attn": "flash-attn"}, cure)
    if shutil.which("torchrun") is None:
        raise UserError(
            "training_hub_missing",
            f"There is no torchrun beside {sys.executable} or on PATH",
            "Install PyTorch into that interpreter's own environment",
        )


def _ensure_there(needed: Mapping[str, str], cure: str) -> None:
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError("training_hub_missing", f"{sys.executable} has no {', '.join(missing)}", cure)


def find_device(spec: TrainingSpec) -> str:
    """Return what is trained on, ``cuda`` or ``cpu``.

    :param spec: says which device was asked for; ``auto`` is CUDA where there is one.
    :raises RunFailed: a GPU was asked for and there is none: better said at once than crawling on a CPU.
    """
    import torch

    there = torch.cuda.is_available()
    if spec.device == "cuda" and not there:
        raise _no_device()
    if spec.device != "cpu" and there:
        ensure_installed_on_cuda(spec)
        return "cuda"
    algorithms.refuse_quantisation_on_cpu(spec)
    return "cpu"


def _no_device() -> RunFailed:
    """Say why PyTorch finds no device: it tells when it is told to begin, and not when it is asked."""
    import torch

    try:
        torch.cuda.init()
        said = ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    known = meaning(said)
    if known and known.cause == "driver_too_old":
        return RunFailed(known.failure_class, known.cause, known.message, known.cure)
    why = next(iter(said.splitlines()), "")
    return RunFailed(
        "infrastructure",
        "no_cuda_device",
        "A GPU was asked for, and this machine has no CUDA device that PyTorch can use" + f" ({why})" * bool(why),
        "Look at the node's driver and device plugin, and whether the image's PyTorch is made for its GPU",
    )


def import_libraries(algorithm: str, device: str) -> str:
    """Import training-hub and return the name of the backend that is registered there.

    The garbage collector would go again and again through the million objects that these imports make and none of
    which is garbage: a fifth of the time.

    :param algorithm: training-hub's name.
    :param device: ``cuda`` or ``cpu``.
    """
    gc.disable()
    try:
        return backends.register(algorithm, device)
    finally:
        gc.freeze()
        gc.enable()
