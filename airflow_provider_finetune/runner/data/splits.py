"""Which files of a data set are those to train on, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from airflow_provider_finetune.runner.failures import UserError

_SPLIT = re.compile(r"(train|test|validation|valid|eval|dev)(?![a-z])", re.I)


def split_of(label: str) -> str | None:
    """Return the split that a file or a directory above it is named after.

    :param label: ``train.jsonl``, ``data/test-00000-of-00001.parquet``.
    """
    found = [match.group(1).lower() for part in label.split("/") if (match := _SPLIT.match(part))]
    return found[-1] if found else None


def of_training(
    labels: Sequence[str],
    name: str,
    argument: str,
    say: Callable[[str], None],
    cure: str = "Name the file to train on",
) -> list[str]:
    """Return the labels to train on: those of ``train``, else those that are of no split.

    :param labels: relative names of files, or names of splits.
    :param name: of the data set, for people.
    :param argument: the operator's argument, for messages.
    :param say: is told what is left out.
    :param cure: how one of them is chosen.
    :raises UserError: there are several splits and none is ``train``.
    """
    split = {label: split_of(label) for label in labels}
    found = set(split.values())
    if len(found) == 1:
        return list(labels)
    wanted = "train" if "train" in found else None
    if wanted not in found:
        raise UserError(
            "dataset_split_unknown",
            f"{argument}={name!r} has the splits {', '.join(sorted(filter(None, found)))}, and no train",
            cure,
        )
    taken = [label for label in labels if split[label] == wanted]
    others = [label for label in labels if split[label] != wanted]
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    say(f"data: {name}: {len(taken)} of {len(labels)} are taken for training; left out: {shown}")
    return taken
