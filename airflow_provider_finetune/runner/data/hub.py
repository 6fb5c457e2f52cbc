"""Data sets of the HuggingFace hub, at the commit that their revision is now.

Files that are read like local ones are fetched, so that each row that cannot be used is named by its file and line and
no other is lost with it. What only ``datasets`` reads comes through it. Which files a config and a split are, it says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from airflow_provider_finetune.runner import hub, transfer
from airflow_provider_finetune.runner.data.formats import format_of, of_split
from airflow_provider_finetune.runner.data.source import Source
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.hub import Repository
from airflow_provider_finetune.runner.storage.fetching import ensure_fits

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 1_000
"""Rows of one table."""

_OF_EVERY_CONFIG = frozenset(["name", "version", "data_dir", "data_files", "description"])
"""What tells a config from others without changing how its files are read."""


def dataset(
    name: str, *, argument: str, scratch: Path, say: Callable[[str], None], trust_remote_code: bool = False
) -> Source:
    """Find a data set on the hub, and fetch its files where they are read like local ones.

    The commit is asked for first, and everything comes from the hub at that commit: nothing is ever read that an
    earlier state has left in a cache.

    :param name: ``org/name@revision?config=…&split=…``, with or without ``hf://`` or ``hf://datasets/``. Without a
        revision the newest; without a config the only one, or the one that the data set calls its default; without a
        split ``train``.
    :param argument: the operator's argument, for messages.
    :param scratch: directory for what is fetched.
    :param say: takes one line for people.
    :param trust_remote_code: without effect, which is said: ``datasets`` no longer reads data sets that are programs.
    :raises UserError: no such data set, config or split, or no right to read it.
    :raises RunFailed: the hub cannot be reached, or the files do not fit on the disk.
    """
    address, _, query = name.partition("?")
    options = _options(query, name, argument)
    asked = hub.repository("dataset", address, argument)
    found = asked.at(hub.ask(asked).sha)
    config = _config(found, options.get("config"))
    files = _reading(found, _files, found, config)
    splits = files or _reading(found, _splits, found, config)
    split = _one_of(splits, options.get("split", "train"), f"{found.named}: split", f"{argument}: append ?split=")
    if trust_remote_code:
        say(f"trust_remote_code has no effect on {found.named}: data sets that are programs are not read")
    which = f"split {split}" if config == "default" else f"config {config}, split {split}"
    identity = {"repository": found.id, "revision": found.revision, "config": config, "split": split}
    if files:
        return replace(_fetched(found, files[split], which, scratch, say), identity=identity)
    tables = partial(_tables, splits[split], found)
    return Source(_shown(found, which), "table", tables=tables, identity=identity)


def _shown(repository: Repository, which: str) -> str:
    return f"{repository.id} ({which}, revision {str(repository.revision)[:7]})"


def _options(query: str, name: str, argument: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {"config", "split"})
    if unknown or not all(options.values()):
        raise UserError(
            "dataset_name_wrong",
            f"{argument}={name!r}: behind '?' stands what is neither config=… nor split=…",
            "Write organisation/name@revision?config=…&split=…, each part but the name only where it is needed",
        )
    return options


def _config(repository: Repository, wanted: str | None) -> str:
    from datasets import get_dataset_config_names, get_dataset_default_config_name

    def known() -> tuple[list[str], str | None]:
        with tempfile.TemporaryDirectory() as empty:
            place = {"path": _address(repository), "revision": repository.revision, "cache_dir": empty}
            return get_dataset_config_names(**place), get_dataset_default_config_name(**place)

    names, default = _reading(repository, known)
    if wanted is None and default:
        return default
    return _one_of(names, wanted, f"{repository.named}: config", f"{repository.argument}: append ?config=")


def _files(repository: Repository, config: str) -> dict[str, list[str]] | None:
    """Return the names of the files of each split, ``None`` where not all can be read like local ones.

    Types that a card declares, and settings of a loader, only ``datasets`` follows.
    """
    from datasets import load_dataset_builder

    with tempfile.TemporaryDirectory() as empty:
        place = {"name": config, "revision": repository.revision, "cache_dir": empty}
        builder = load_dataset_builder(_address(repository), **place)
    if builder.info.features is not None or _has_settings(builder.config):
        return None
    root = f"{_address(repository)}@{repository.revision}/"
    found = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    for files in found.values():
        if not all(file.startswith(root) for file in files) or len(formats := set(map(format_of, files))) != 1:
            return None
        if None in formats:
            return None
    return {split: [file.removeprefix(root) for file in files] for split, files in found.items()}


def _has_settings(config: Any) -> bool:
    usual = type(config)()
    return any(
        getattr(config, setting.name) != getattr(usual, setting.name)
        for setting in fields(config)
        if setting.name not in _OF_EVERY_CONFIG
    )


def _fetched(repository: Repository, names: list[str], which: str, scratch: Path, say: Callable[[str], None]) -> Source:
    if len(names) == 1:
        which = f"{which}: {names[0]}"
    directory = scratch / str(repository.revision)
    directory.mkdir(parents=True, exist_ok=True)
    total = hub.bytes_of(repository, names)
    ensure_fits(total, directory, repository.named)
    say(f"fetching {_shown(repository, which)}: {transfer.size(total)}")
    with transfer.said(say, f"data of {repository.named}", directory, total):
        hub.download(repository, names, into=directory)
    files = {name: directory / name for name in names}
    return of_split(files, name=_shown(repository, which), argument=repository.argument)


def _splits(repository: Repository, config: str) -> Any:
    from datasets import load_dataset

    # Where the hub goes away just now, ``datasets`` would take what it finds in its cache, of whatever revision.
    with tempfile.TemporaryDirectory() as empty:
        return load_dataset(
            _address(repository), name=config, revision=repository.revision, streaming=True, cache_dir=empty
        )


def _address(repository: Repository) -> str:
    """With its scheme, else a local directory of that name would be taken for it."""
    return f"hf://datasets/{repository.id}"


def _one_of(there: Any, wanted: str | None, what: str, how: str) -> str:
    if wanted in there:
        return str(wanted)
    asked = "one must be chosen" if wanted is None else f"there is no {wanted!r}"
    raise UserError(
        "dataset_part_missing",
        f"{what}: {asked} among {', '.join(sorted(there)) or 'none'}",
        f"Say which in {how}<name>",
    )


def _tables(loaded: Any, repository: Repository) -> Iterator[pyarrow.Table]:
    rows = loaded.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
    while (table := _reading(repository, next, rows, None)) is not None:
        yield table


def _reading(repository: Repository, read: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``read``, and say of a failure whether the hub or the data is the reason."""
    try:
        return read(*arguments)
    except Exception as error:
        # By its name alone: what Arrow and pandas say quotes the cell that they could not read.
        unreadable = UserError(
            "dataset_unreadable",
            f"{repository.argument}: the data set {repository.named} cannot be read ({type(error).__name__})",
            "It must hold JSON, CSV, parquet or text files whose rows have the same columns; or prepare it in a task "
            "before this one",
        )
        raise hub.failure(error, repository, otherwise=unreadable) from None
