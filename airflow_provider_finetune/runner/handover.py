"""The file of rows that training-hub reads: tokens with their labels, or chats that it makes tokens of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

IGNORED = -100
"""The label that torch's cross entropy leaves out of the loss."""

_ROWS_PER_BATCH = 1000

Write = Callable[[Any, list[int], list[int]], None]
"""Takes a row's messages, token ids and labels."""


class Handover(NamedTuple):
    """Where rows are handed over, and as what.

    * ``path``: ``.parquet`` for the backends of ours; training-hub's own read JSON lines
    * ``chats``: messages in place of tokens
    """

    path: Path
    chats: bool = False

    @contextmanager
    def written(self) -> Iterator[Write]:
        """Give a function that takes one row after the other.

        The first token of a row is only ever input. Where rows are packed one behind the other, a label of its own
        would be learned as what follows the row before.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (_parquet if self.path.suffix == ".parquet" else self._lines)(self.path) as write:
            yield lambda messages, ids, labels: write(messages, ids, [IGNORED, *labels[1:]])

    @contextmanager
    def _lines(self, target: Path) -> Iterator[Write]:
        document = _messages if self.chats else _tokens
        with target.open("w", encoding="utf-8") as file:

            def write(messages: Any, ids: list[int], labels: list[int]) -> None:
                file.write(json.dumps(document(messages, ids, labels)) + "\n")

            yield write


def _messages(messages: Any, ids: list[int], labels: list[int]) -> dict[str, Any]:
    return {"messages": messages}


def _tokens(messages: Any, ids: list[int], labels: list[int]) -> dict[str, Any]:
    # What the data processing of instructlab-training, which mini-trainer uses as well, would have written.
    trained = sum(label != IGNORED for label in labels)
    return {"input_ids": ids, "labels": labels, "len": len(ids), "num_loss_counted_tokens": trained}


@contextmanager
def _parquet(target: Path) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    batch: list[dict[str, list[int]]] = []
    with pq.ParquetWriter(target, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            batch.clear()

        def write(messages: Any, ids: list[int], labels: list[int]) -> None:
            batch.append({"input_ids": ids, "labels": labels})
            if len(batch) == _ROWS_PER_BATCH:
                flush()

        yield write
        flush()
