"""Checkpoints that a training can go on from, in the layouts of the backends. Paths only, no library.

* transformers (LoRA; all algorithms on a CPU): ``checkpoint-<step>``
* mini-trainer (OSFT on CUDA): ``full_state_checkpoints/step_<step>``
* instructlab-training (SFT on CUDA): ``full_state/epoch_<epoch>``
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

_LAYOUTS = (
    ("", re.compile(r"checkpoint-(\d+)"), "trainer_state.json"),
    ("full_state_checkpoints", re.compile(r"step_(\d+)"), "training_state.pt"),
    ("full_state", re.compile(r"epoch_(\d+)"), "training_metadata.json"),
)
"""Directory, names, and the file that is written when nearly all others are."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its directory, and the number in its name."""

    path: Path
    number: int

    @property
    def unit(self) -> str:
        """What the number counts."""
        return "epoch" if self.path.name.startswith("epoch_") else "step"


def newest(directory: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, ``None`` where there is none.

    :param directory: training-hub's ``ckpt_output_dir``.
    """
    whole = [checkpoint for checkpoint, is_whole in _found(directory) if is_whole]
    return max(whole, key=lambda checkpoint: checkpoint.number, default=None)


def forget_broken(directory: Path) -> None:
    """Remove checkpoints that were being written when the training ended: the libraries would take them for whole.

    :param directory: training-hub's ``ckpt_output_dir``.
    """
    for checkpoint, is_whole in _found(directory):
        if not is_whole:
            shutil.rmtree(checkpoint.path, ignore_errors=True)


def _found(directory: Path) -> list[tuple[Checkpoint, bool]]:
    found = []
    for below, names, last_file in _LAYOUTS:
        for path in (directory / below).glob("*_*" if below else "*-*"):
            if path.is_dir() and (match := names.fullmatch(path.name)):
                # training-hub marks the one that it saves in a hurry by a file beside it.
                hurried = directory / f".incomplete-{path.name}"
                found.append((Checkpoint(path, int(match[1])), (path / last_file).exists() and not hurried.exists()))
    return found
