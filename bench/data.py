"""Measure the pass over a data set against what the libraries do: ``load_dataset(...)`` and ``to_json``.

Run it with an interpreter that has this package; ``FINETUNE_TRAIN_PYTHON`` names one with training-hub::

    FINETUNE_TRAIN_PYTHON=.../python python bench/data.py --size 1000

The same chat rows as JSONL, as parquet and as JSONL in gzip, made in a temporary folder: of 100 rows 70 are plain
English in ASCII, 20 have letters and quotes of Europe, 10 have Chinese or emoji.

* A: ``rows.read``: every row recognised, checked, counted, hashed, and written as a canonical row.
* B: ``datasets.load_dataset(...)["train"].to_json(...)``, as the component of the pipelines does; nothing is checked.

Each is a fresh process. Its seconds begin after its imports, all of which the training has as well. Memory is the peak
of the proportional set size (PSS) of the process and its children, less that of one that only imports ``datasets``. A
and B alternate, and the medians are compared; CPU seconds of all processes stand beside them, since a shared machine is
never twice the same. It exits with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

GOAL_TIMES = 3.0
GOAL_BYTES = 200e6

FORMATS = {"chat.jsonl": "json", "chat.parquet": "parquet", "chat.jsonl.gz": "json"}

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

MAKE_PARQUET = """
import json, sys
import pyarrow as pa, pyarrow.parquet as pq
kind = pa.struct([("role", pa.string()), ("content", pa.string())])
schema = pa.schema([("id", pa.string()), ("messages", pa.list_(kind))])
with open(sys.argv[1]) as lines, pq.ParquetWriter(sys.argv[2], schema) as writer:
    while rows := [json.loads(line) for _, line in zip(range(20_000), lines)]:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
"""

OURS = """
import sys, time
from pathlib import Path
import pandas, pyarrow.compute, pyarrow.json, pyarrow.parquet
from airflow_provider_finetune.runner.data import locate, rows
scratch = Path(sys.argv[3])
begin = time.monotonic()
source = locate.locate(sys.argv[1], scratch=scratch, say=print)
found = rows.read(source, scratch / "rows.jsonl", print)
print("seconds:", time.monotonic() - begin, found.usable)
"""

LIBRARIES = """
import sys, time
import datasets
begin = time.monotonic()
data = datasets.load_dataset(sys.argv[2], data_files=sys.argv[1], cache_dir=sys.argv[3] + "/cache")["train"]
data.to_json(sys.argv[3] + "/rows.jsonl")
print("seconds:", time.monotonic() - begin, len(data))
"""

IMPORTS = "import time, datasets; time.sleep(0.5); print('seconds:', 0, 0)"

Figures = dict[str, float]
"""``seconds``, ``cpu`` seconds, ``memory`` in bytes, ``rows``."""


def make(root: Path, size: int, python: str) -> None:
    """Write the same rows in all formats.

    :param root: folder to write to.
    :param size: bytes of the JSONL.
    :param python: interpreter with pyarrow.
    """
    with (root / "chat.jsonl").open("w", encoding="utf-8") as file:
        for line in _rows(size):
            file.write(line)
    subprocess.run([python, "-c", MAKE_PARQUET, root / "chat.jsonl", root / "chat.parquet"], check=True)
    with (root / "chat.jsonl").open("rb") as plain, gzip.open(root / "chat.jsonl.gz", "wb", compresslevel=3) as packed:
        while block := plain.read(1 << 20):
            packed.write(block)


def _rows(size: int) -> Iterator[str]:
    """Yield lines of JSON of ``size`` bytes together."""
    chance = random.Random(7)
    texts = [json.dumps(_text(chance), ensure_ascii=False)[1:-1] for _ in range(4000)]
    number = 0
    while size > 0:
        number += 1
        turns = [
            f'{{"role": "{role}", "content": "{number} {chance.choice(texts)}"}}'
            for _ in range(chance.choice((1, 1, 1, 2, 3)))
            for role in ("user", "assistant")
        ]
        line = f'{{"id": "{number}", "messages": [{", ".join(turns)}]}}\n'
        size -= len(line.encode())
        yield line


def _text(chance: random.Random) -> str:
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(chance.randint(5, 120))]
    words[:: len(words) // 3 or 1] = ["Say:\n- “it”" if (kind := chance.random()) < 0.2 else 'Say:\n- "it"'] * len(
        words[:: len(words) // 3 or 1]
    )
    if kind < 0.2:
        words.append("für Élodie")
    elif kind < 0.3:
        words.append("你好世界 🙂")
    return " ".join(words)


def measure(python: str, program: str, path: Path, kind: str) -> Figures:
    """Run a process twice: once for its seconds, and once for its memory, since to look at that takes time from it.

    :param python: its interpreter.
    :param program: what it runs.
    :param path: the data.
    :param kind: the libraries' name of the format.
    """
    timed = _run(python, program, path, kind, look=False)
    return {**timed, "memory": _run(python, program, path, kind, look=True)["memory"]}


def _run(python: str, program: str, path: Path, kind: str, *, look: bool) -> Figures:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, open(Path(scratch) / "log", "w+") as log:
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1])}
        before = os.times()
        command = [python, "-c", program, str(path), kind, scratch]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        memory = 0
        while process.poll() is None:
            memory = max(memory, _memory(process.pid) if look else 0)
            time.sleep(0.05)
        after = os.times()
        log.seek(0)
        said = log.read()
        result = [line.split()[1:] for line in said.splitlines() if line.startswith("seconds: ")]
        if process.returncode != 0 or not result:
            sys.exit(f"{said}\nThe process above ended with {process.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": float(result[0][0]), "cpu": cpu, "memory": memory, "rows": float(result[0][1])}


def _memory(pid: int) -> int:
    """Return the proportional set size of a process and of all that it has started, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return own + sum(_memory(int(child)) for child in children)


def report(name: str, path: Path, size: int, ours: list[Figures], libraries: list[Figures], imports: int) -> bool:
    """Print the medians of A and B for one format, beside the goals.

    :return: whether they are met.
    """
    print(f"\n{name}: {path.stat().st_size / 1e6:.0f} MB, {ours[0]['rows']:.0f} rows, medians of {len(ours)}")
    if {figures["rows"] for figures in ours + libraries} != {ours[0]["rows"]}:
        sys.exit("A and B differ in the rows that they have found")
    medians = [{key: statistics.median(one[key] for one in side) for key in side[0]} for side in (ours, libraries)]
    for letter, side in zip("AB", medians, strict=True):
        print(
            f"{letter}: {side['seconds']:6.2f} s  {size / 1e6 / side['seconds']:6.0f} MB/s  CPU {side['cpu']:6.2f} s  "
            f"{(side['memory'] - imports) / 1e6:+6.0f} MB"
        )
    times, memory = medians[1]["seconds"] / medians[0]["seconds"], medians[0]["memory"] - imports
    met = times >= GOAL_TIMES and memory <= GOAL_BYTES
    print(
        f"{times:.1f} times as fast (goal: {GOAL_TIMES:g}), {memory / 1e6:.0f} MB above the libraries' own (goal: at "
        f"most {GOAL_BYTES / 1e6:g}): {'PASS' if met else 'FAIL'}"
    )
    return met


def main() -> int:
    """Make the data, run A and B, report."""
    parser = argparse.ArgumentParser(description="The pass over a data set against load_dataset and to_json.")
    parser.add_argument("--size", type=int, default=1000, help="MB of JSONL (default: 1000, which the goal is for)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: 3)")
    arguments = parser.parse_args()
    python = os.environ.get("FINETUNE_TRAIN_PYTHON")
    if not python:
        parser.error("FINETUNE_TRAIN_PYTHON must name an interpreter with datasets and pyarrow")
    size = arguments.size * 1_000_000
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as root:
        make(Path(root), size, python)
        imports = int(measure(python, IMPORTS, Path(root) / "chat.jsonl", "")["memory"])
        print(f"memory of a process that imports datasets: {imports / 1e6:.0f} MB")
        met = []
        for name, kind in FORMATS.items():
            path = Path(root) / name
            ours, libraries = [], []
            for _ in range(arguments.runs):
                ours.append(measure(python, OURS, path, kind))
                libraries.append(measure(python, LIBRARIES, path, kind))
            met.append(report(name, path, size, ours, libraries, imports))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
