"""Asks for a model or a data set as the runner does, in a process of its own, whose environment names the hub.

``python hub_client.py '[{"model": name, "weights": true, …}, …]'`` prints a JSON list of answers as its last line.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_provider_finetune.runner import model, transfer
from airflow_provider_finetune.runner.data import hub, rows
from airflow_provider_finetune.runner.failures import explain


def answer_to(order: dict[str, Any]) -> dict[str, Any]:
    """Follow one order.

    :return: what was found, or the ``failure``; and the lines for people as ``said``.
    """
    said: list[str] = []
    Path(order["scratch"]).mkdir(parents=True, exist_ok=True)
    answer: dict[str, Any] = {"said": said}
    try:
        if "dataset" in order:
            answer.update(_rows(order, said))
        else:
            answer.update(_model(order, said))
    except Exception as error:
        answer["failure"] = asdict(explain(error))
    return answer


def _model(order: dict[str, Any], said: list[str]) -> dict[str, Any]:
    trusted = order.get("trust_remote_code", False)
    base = model.locate(order["model"], scratch=Path(order["scratch"]), say=said.append, trust_remote_code=trusted)
    located = sorted(path.name for path in Path(base.path).iterdir())
    if order.get("weights"):
        base = model.fetch_weights(base, said.append)
    return {"base": asdict(base), "located": located, "files": sorted(path.name for path in Path(base.path).iterdir())}


def _rows(order: dict[str, Any], said: list[str]) -> dict[str, Any]:
    import datasets

    # Of a hub that is gone it would wait 100 s for its return.
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0.1
    if "free" in order:
        shutil.disk_usage = lambda path: SimpleNamespace(free=order["free"])  # type: ignore[assignment,return-value]
    scratch = Path(tempfile.mkdtemp(dir=order["scratch"]))
    source = hub.dataset(order["dataset"], argument="dataset", scratch=scratch, say=said.append)
    answer = {"name": source.name, "format": source.format, "identity": source.identity}
    if source.tables is None:
        found = rows.read(source, scratch / "rows.jsonl", said.append)
        read = [{"messages": row.messages} for row in islice(rows.rows(found.path), 5)]
        return {**answer, "rows": read, "summary": found.summary()}
    tables = list(source.tables())
    assert [row for table in source.tables() for row in table.to_pylist()] == [
        row for table in tables for row in table.to_pylist()
    ]
    return {
        **answer,
        "sizes": [table.num_rows for table in tables],
        "rows": [row for table in tables for row in table.to_pylist()][:5],
    }


if __name__ == "__main__":
    transfer.INTERVAL = 0.2
    print(json.dumps([answer_to(order) for order in json.loads(sys.argv[1])]))
