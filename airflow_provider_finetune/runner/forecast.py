"""Disk and memory that a training will need, held against what is there before weights are fetched.

Pure functions over numbers, and thin readers of what this machine has. Sizes are bytes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed

FLOAT32 = 4
_ADAM = 2
"""Numbers that Adam keeps for each weight, as wide as the weight."""

_TOKEN = 8
"""Of each token an id and a label, 4 bytes each."""

_OUTSIDE_WEIGHTS = 1_000_000
"""Of a checkpoint: configuration, random states, a line for each step. Seen: 0.1 MB after 35 steps, 250 bytes each."""


class Sizes(NamedTuple):
    """Numbers in a model: all ``weights``, those that are ``trained``, and those of the ``largest`` matrix."""

    weights: int
    trained: int
    largest: int


def sizes(model: Any) -> Sizes:
    """Count the weights of a torch model, which may lie on the meta device; shared ones count once."""
    counted = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return Sizes(
        sum(count for count, _ in counted),
        sum(count for count, trained in counted if trained),
        max((count for count, _ in counted), default=0),
    )


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def model_files(directory: Path) -> int:
    """Return the size of what lies beside a model's weights: the tokenizer above all."""
    return sum(path.stat().st_size for path in directory.glob("*") if path.is_file() and path.suffix not in _WEIGHTS)


def tokenised(algorithm: str, tokens: int) -> int:
    """Return what tokenised rows take: parquet of ours, and the Arrow files that ``datasets`` makes of it.

    Seen with TRL 1.16 and datasets 5.2: 8 bytes a token in Arrow, and for LoRA the same again, as TRL's ``map`` writes
    what it has cut to ``max_length``. Parquet is compressed, and 8 bytes a token at most.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param tokens: of one epoch.
    """
    return (3 if algorithm == "lora_sft" else 2) * _TOKEN * tokens


def lora_checkpoints(
    adapter: int, beside: int, *, steps: int, epochs: int, at_epoch: bool, save_steps: int, limit: int | None
) -> int:
    """Return what LoRA keeps at once until the adapter is published.

    A ``checkpoint-N`` has the adapter, Adam's state of it and the tokenizer; transformers removes the oldest only when
    a new one is written, and saves at the end as well. The last adapter lies beside them.

    :param adapter: float32 weights of the adapter.
    :param beside: tokenizer and configuration.
    :param steps: of the whole training.
    :param epochs: of the whole training.
    :param at_epoch: a checkpoint at the end of each epoch, and no others.
    :param save_steps: steps from one checkpoint to the next.
    :param limit: ``save_total_limit``; none for all.
    """
    due = epochs if at_epoch else math.ceil(steps / max(save_steps, 1))
    kept = min(due, limit + 1) if limit else due
    beside += _OUTSIDE_WEIGHTS
    return kept * ((1 + _ADAM) * adapter + beside) + adapter + beside


def sft_checkpoints(
    model: int,
    beside: int,
    *,
    rows: int,
    epochs: int,
    at_epoch: bool,
    save_samples: int,
    last_only: bool,
    limit: int | None,
    full_state: bool,
) -> int:
    """Return what SFT keeps at once until the last checkpoint is published.

    :param model: all weights, in the type that they are saved in.
    :param beside: tokenizer and configuration.
    :param rows: samples of one epoch.
    :param epochs: of the whole training.
    :param at_epoch: a checkpoint at the end of each epoch.
    :param save_samples: samples from one checkpoint to the next, 0 for none.
    :param last_only: each checkpoint takes the place of the one before.
    :param limit: ``save_total_limit``: the oldest goes when a new one has been written; none for all.
    :param full_state: with each epoch's checkpoint what a training needs to go on: weights and Adam's state.
    """
    by_samples = rows * epochs // save_samples if save_samples > 0 else 0
    due = (epochs if at_epoch else 0) + by_samples
    states = epochs if at_epoch and full_state else 0
    if limit:
        due, states = min(due, limit + 1), min(states, limit + 1)
    return min(due, 1 if last_only else due) * (model + beside + _OUTSIDE_WEIGHTS) + states * (1 + _ADAM) * model


def checkpoints(algorithm: str, sent: Mapping[str, Any], counted: Sizes, beside: int, *, rows: int, steps: int) -> int:
    """Return what the checkpoints of a training on a CPU take, where weights are float32.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param sent: training-hub's keywords.
    :param counted: of the model that is trained, with its adapter.
    :param beside: tokenizer and configuration.
    :param rows: samples of one epoch.
    :param steps: of the whole training.
    """
    epochs = sent["num_epochs"]
    if algorithm == "osft":
        at_epoch = bool(sent.get("checkpoint_at_epoch"))
        return sft_checkpoints(
            FLOAT32 * counted.weights,
            beside,
            rows=rows,
            # Without them the one at the end.
            epochs=epochs if at_epoch else 1,
            at_epoch=True,
            save_samples=0,
            last_only=False,
            limit=sent.get("save_total_limit"),
            full_state=False,
        )
    if algorithm == "lora_sft":
        return lora_checkpoints(
            FLOAT32 * counted.trained,
            beside,
            steps=steps,
            epochs=epochs,
            at_epoch=bool(sent.get("checkpoint_at_epoch")),
            save_steps=sent.get("save_steps", 500),
            limit=sent.get("save_total_limit", 3),
        )
    return sft_checkpoints(
        FLOAT32 * counted.weights,
        beside,
        rows=rows,
        epochs=epochs,
        at_epoch=sent.get("checkpoint_at_epoch", True),
        save_samples=sent.get("save_samples") or 0,
        last_only=bool(sent.get("keep_last_checkpoint_only")),
        limit=sent.get("save_total_limit"),
        full_state=bool(sent.get("accelerate_full_state_at_epoch", True)),
    )


def published(algorithm: str, output_kind: str, counted: Sizes, base_weights: int, beside: int) -> tuple[int, int]:
    """Return what a merge, or a model in its base model's dtype, adds to the work directory, and what is then copied.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param output_kind: ``adapter``, ``merged`` or ``both``.
    :param counted: of the model that is trained, with its adapter.
    :param base_weights: of the base model as it is stored; a merged model has its type.
    :param beside: tokenizer and configuration.
    """
    if algorithm != "lora_sft":
        trained = FLOAT32 * counted.weights
        stored = min(base_weights, trained)
        return stored if stored < trained else 0, stored + beside
    adapter, merged = FLOAT32 * counted.trained + beside, base_weights + beside
    if output_kind == "adapter":
        return 0, adapter
    return merged, merged + (adapter if output_kind == "both" else 0)


class Part(NamedTuple):
    """Something that will be written: what, into which directory, and its size."""

    what: str
    directory: Path
    size: int


def ensure_disk_suffices(
    parts: Iterable[Part],
    events: Events,
    *,
    file_system: Callable[[Path], int] | None = None,
    free: Callable[[Path], int] | None = None,
) -> None:
    """Say what each file system has and will need.

    :param parts: what will be written; directories on one file system are added up.
    :param events: takes a line for each file system.
    :param file_system: tells which one a directory is on.
    :param free: tells how much is free there.
    :raises RunFailed: one has too little.
    """
    together: dict[int, list[Part]] = {}
    for part in parts:
        if part.size:
            together.setdefault((file_system or _file_system)(part.directory), []).append(part)
    found = []
    for group in together.values():
        needed, there = sum(part.size for part in group), (free or _free)(group[0].directory)
        found.append({"directory": str(group[0].directory), "needed": needed, "free": there})
        events.report(plan={"disk": found})
        if needed > there:
            raise RunFailed(
                "resources",
                "disk_too_small",
                f"The training needs {_gigabytes(needed)} on the disk of {group[0].directory}, which has "
                f"{_gigabytes(there)} free: "
                + "; ".join(f"{_gigabytes(part.size)} for {part.what} in {part.directory}" for part in group),
                "Free space there, set pvc_path or output_model to a larger disk, or keep fewer checkpoints at once "
                "(training_checkpoint_at_epoch, training_save_samples, extra_args['save_total_limit'])",
            )
        events.say(
            f"disk: {readable(needed)} needed of {readable(there)} free at {group[0].directory} ("
            + ", ".join(f"{part.what} {readable(part.size)}" for part in group)
            + ")"
        )


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.exists())


def _file_system(directory: Path) -> int:
    return _existing(directory).stat().st_dev


def _free(directory: Path) -> int:
    return shutil.disk_usage(_existing(directory)).free


def ensure_memory_suffices(needed: int, events: Events, *, available: int | None) -> None:
    """Hold the memory of a merge against what is there.

    :param needed: see :func:`~airflow_provider_finetune.runner.merging.memory_needed`.
    :param events: takes the line.
    :param available: see :func:`~airflow_provider_finetune.runner.memory.available`.
    :raises RunFailed: there is less.
    """
    if available is None:
        return
    events.report(plan={"memory": {"needed": needed, "available": available}})
    if needed > available:
        raise RunFailed(
            "resources",
            "memory_too_small",
            f"Merging the adapter into the base model needs {_gigabytes(needed)} of memory, and "
            f"{_gigabytes(available)} are available",
            "Give the training more memory (training_resource_memory_per_worker on a cluster), or publish the adapter "
            "alone (output_kind='adapter')",
        )
    events.say(f"memory: {readable(needed)} needed to merge the adapter, {readable(available)} available")


def readable(size: int) -> str:
    """Return a size for people: GB, or MB below one."""
    return f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{math.ceil(size / 10**6)} MB"


def _gigabytes(size: int) -> str:
    return f"{size / 10**9:.{2 if size >= 10**8 else 3}f} GB"
