"""``Source``: where the rows of a data set are read from, once it is on this machine or within reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Source:
    """One data set, found but not yet read.

    * ``name``: for people, without credentials: ``/data/train.jsonl``, ``s3://bucket/rows/ (3 files)``
    * ``format``: ``jsonl``, ``json``, ``csv``, ``parquet``, or ``table`` for what a library hands over in memory
    * ``files``: local files in reading order; one whose name ends in ``.gz`` is decompressed while it is read
    * ``labels``: the name of each file within the data set, which rows are named by where there are several
    * ``tables``: for ``table``: begins to read anew each time it is called
    * ``identity``: what tells the data apart beside its hash: revision, split, config, etag
    """

    name: str
    format: str
    files: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    tables: Callable[[], Iterator[pyarrow.Table]] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
