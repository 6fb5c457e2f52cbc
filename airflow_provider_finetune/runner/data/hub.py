"""Data sets of the HuggingFace hub, read as they come, at the commit that their revision is now."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from airflow_provider_finetune.runner import hub
from airflow_provider_finetune.runner.data.source import Source
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.hub import Repository

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 1_000
"""Rows of one table."""


def dataset(name: str, *, argument: str, say: Callable[[str], None], trust_remote_code: bool = False) -> Source:
    """Find a data set on the hub; none of its rows is read yet.

    The commit is asked for first, and rows come from the hub at that commit: nothing is ever read that an earlier state
    has left in a cache.

    :param name: ``org/name@revision?config=…&split=…``, with or without ``hf://`` or ``hf://datasets/``. Without a
        revision the newest; without a config the only one, or the one that the data set calls its default; without a
        split ``train``.
    :param argument: the operator's argument, for messages.
    :param say: takes one line for people.
    :param trust_remote_code: without effect, which is said: ``datasets`` no longer reads data sets that are programs.
    :raises UserError: no such data set, config or split, or no right to read it.
    :raises RunFailed: the hub cannot be reached.
    """
    address, _, query = name.partition("?")
    options = _options(query, name, argument)
    asked = hub.repository("dataset", address, argument)
    found = asked.at(hub.ask(asked).sha)
    config = _config(found, options.get("config"))
    splits = _reading(found, _splits, found, config)
    split = _one_of(splits, options.get("split", "train"), f"{found.named}: split", f"{argument}: append ?split=")
    if trust_remote_code:
        say(f"trust_remote_code has no effect on {found.named}: data sets that are programs are not read")
    which = f"split {split}" if config == "default" else f"config {config}, split {split}"
    return Source(
        name=f"{found.id} ({which}, revision {str(found.revision)[:7]})",
        format="table",
        tables=partial(_tables, splits[split], found),
        identity={"repository": found.id, "revision": found.revision, "config": config, "split": split},
    )


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
