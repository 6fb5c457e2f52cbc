"""What a published model looks like: files without directories but one, with a config and weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from airflow_provider_finetune.runner.failures import UserError

CONFIGS = ("adapter_config.json", "config.json")
"""The files that loaders look for first: without them nobody takes a directory for a model."""

TEMPLATES = "additional_chat_templates"
"""The one directory that a model may have: of the chat templates that its tokenizer has beside the usual one."""


def paths(directory: Path) -> list[Path]:
    """Return what lies in the directory of a model, and in place of the directory of templates these."""
    entries = [entry for entry in directory.iterdir() if entry.name != TEMPLATES]
    return entries + list((directory / TEMPLATES).glob("*.jinja"))


def is_part(name: str) -> bool:
    """Say whether a file may belong to a model by its relative name."""
    directory, _, file = name.rpartition("/")
    return not directory or (directory == TEMPLATES and file.endswith(".jinja"))


def is_model(names: Collection[str]) -> bool:
    """Say whether files of these names are a model."""
    return not set(CONFIGS).isdisjoint(names) and any(name.endswith((".safetensors", ".bin")) for name in names)


def is_whole(sizes: Mapping[str, int]) -> bool:
    """Say whether files of these names and sizes are a model whose files are not empty."""
    return is_model([name for name, size in sizes.items() if size])


def holds_model(directory: Path) -> bool:
    """Say whether a model lies in ``directory``: a config and weights that are not empty. Nothing is loaded."""
    try:
        return is_whole({entry.name: entry.stat().st_size for entry in directory.iterdir() if entry.is_file()})
    except OSError:
        return False


def in_use(argument: str, why: str) -> UserError:
    """Return the refusal of a place that holds what publishing would remove.

    :param argument: the operator's argument.
    :param why: what lies there.
    """
    cure = f"Name a directory of its own in {argument}, one that is new, empty or holds an earlier model"
    return UserError("output_in_use", f"{argument}: {why}", cure, parameter=argument)
