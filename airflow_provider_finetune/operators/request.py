"""From checked arguments to a ``TrainingSpec``, and where on this machine it works. Pure functions, without Airflow."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from airflow_provider_finetune.contract.parameters import OPERATOR_ONLY
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.operators.arguments import none_if_empty, seconds

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME = 100


def local_spec(
    algorithm: str,
    documented: Mapping[str, Any],
    values: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    work_dir: Path,
    map_index: int,
) -> TrainingSpec:
    """Return the spec of a training on this machine, which takes the devices that it finds.

    :param algorithm: training-hub's name.
    :param documented: the rendered documented inputs by name.
    :param values: the checked values of the record.
    :param arguments: the other checked arguments by name.
    :param work_dir: directory of the task instance.
    :param map_index: ``-1`` where the task is not mapped.
    """
    return TrainingSpec(
        algorithm=algorithm,
        base_model=values["base_model"],
        dataset=documented["dataset"],
        work_dir=str(work_dir),
        parameters={name: value for name, value in values.items() if name not in OPERATOR_ONLY},
        extra_args=dict(arguments["extra_args"] or {}),
        output_model=output(documented["output_model"], map_index),
        output_metrics=output(documented["output_metrics"], map_index),
        output_loss_chart=output(documented["output_loss_chart"], map_index),
        resume=arguments["resume"],
        keep=arguments["keep"],
        max_dropped=arguments["max_dropped"],
        show_samples=arguments["show_samples"],
        progress_interval=seconds(arguments["progress_interval"]) or 0,
        # Nobody who asks for no GPU wants one taken, also where the machine has some.
        device="cpu" if values["resource_gpu_per_worker"] == 0 else "auto",
    )


def output(target: str | None, map_index: int) -> str | None:
    """Return where to publish; mapped instances publish below their index, so that none overwrites another.

    :param target: a rendered output; ``None`` is the work directory.
    :param map_index: ``-1`` where the task is not mapped.
    """
    target = none_if_empty(target)
    return target if target is None or map_index < 0 else f"{target.rstrip('/')}/{map_index}"


def work_directory(root: Path, *identity: str) -> Path:
    """Return the directory of one task instance: each part of its identity is one safe file name.

    :param root: the one root of all files.
    :param identity: dag, run, task and perhaps map index.
    """
    return root.joinpath(*map(safe_name, identity))


def safe_name(name: str) -> str:
    """Return ``name`` where it is a safe file name, else one like it that no other name becomes.

    :param name: e.g. a run id such as ``manual__2025-01-01T00:00:00+00:00``.
    """
    safe = _UNSAFE.sub("_", name)[:_LONGEST_NAME].lstrip(".")
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def local_directory(place: str) -> Path:
    """Return the directory that a path or a ``file://`` URI names.

    :param place: checked by :func:`problems_of` to be one of the two.
    """
    # Not by urlsplit: "#" and "?" are part of a path that somebody has put behind "file://".
    uri_path = unquote(place.removeprefix("file://").removeprefix("localhost"))
    return Path(uri_path if place.startswith("file://") else place).expanduser().absolute()
