"""Measure what the runner adds to a bare call of training-hub: the same model, the same rows, the same keywords.

Run it with an interpreter that has this package; ``FINETUNE_TRAIN_PYTHON`` names one with training-hub::

    FINETUNE_TRAIN_PYTHON=.../python python bench/runner_overhead.py --pairs 3

* A: ``finetune-runner.pyz run``, from the start of its process to its end: parent, check, training, proof of the
  model, publication, chart, outcome.
* B: a fresh interpreter that imports training-hub and calls ``lora_sft`` on rows tokenised beforehand, with the very
  keywords that the check makes for A.

Interpreter start, imports, training and the libraries' own saving are counted in both. A alone checks: its
``seconds_check`` less the imports in it (``seconds_import``), which B needs as well, are printed apart. All else that
A does beyond B is the overhead. Both get the runner's ``OMP_WAIT_POLICY``: it makes trainings on a busy machine
several times faster, which would hide any overhead. A alone imports without the garbage collector.

A and B alternate, and the medians are compared, since a shared machine is never twice the same; the CPU seconds of all
processes of A and of B stand beside the wall clock for that reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from airflow_provider_finetune.archive import runner_bytes

GOAL_SHARE = 0.02
GOAL_SECONDS = 1.0

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}

PREPARE = """
import json, os, sys
from pathlib import Path
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.check import check
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.tries.workdir import WorkDir
from tests.train.tiny_model import save_tiny_model
root = Path(sys.argv[1])
save_tiny_model(root / "model", layers=4, width=256)
spec = TrainingSpec.from_json((root / "spec.json").read_text())
prepared = check(spec, WorkDir(root / "prepared"), Events(os.open(os.devnull, os.O_WRONLY)))
(root / "keywords.json").write_text(json.dumps(prepared.keywords))
"""

BARE = """
import json, sys, time
begin = time.monotonic()
import training_hub
from airflow_provider_finetune.runner.backends import trl_lora
imported = time.monotonic()
keywords = {**json.load(open(sys.argv[1])), "ckpt_output_dir": sys.argv[2], "backend": trl_lora.register()}
training_hub.lora_sft(**keywords)
print("seconds:", imported - begin, time.monotonic() - imported)
"""

Figures = dict[str, float]
"""Seconds by name, see :data:`PARTS`."""

PARTS = {
    "import": "imports of training-hub and its libraries",
    "check": "check: data, tokenizer, tokenising, plan",
    "training": "lora_sft, from the call to the saved adapter",
    "rest": "all the rest: start, end; A: see above",
    "wall": "wall clock of the whole",
    "cpu": "CPU of all its processes",
}


class Bench:
    """The files and processes of one measurement below ``root``."""

    def __init__(self, root: Path, train_python: str, rows: int) -> None:
        self._root, self._python, self._runs = root, train_python, 0
        self._runner = root / "finetune-runner.pyz"
        self._runner.write_bytes(runner_bytes())
        (root / "chat.jsonl").write_text("".join(_row(number) for number in range(rows)))
        self._spec = {
            "version": 1,
            "algorithm": "lora_sft",
            "base_model": str(root / "model"),
            "dataset": str(root / "chat.jsonl"),
            "work_dir": str(root / "work"),
            "device": "cpu",
            "parameters": {"effective_batch_size": 8, "max_seq_len": 512, "num_epochs": 1, "seed": 7},
        }
        (root / "spec.json").write_text(json.dumps(self._spec))
        self._start(["-c", PREPARE, str(root)], more_path=str(Path(__file__).parents[1]))

    def runner(self) -> Figures:
        """A: run the runner on the spec."""
        figures = self._start([str(self._runner), "run", "--spec", str(self._root / "spec.json")])
        newest = max((self._root / "work").iterdir(), key=lambda entry: int(entry.name))
        metrics = json.loads((newest / "outcome.json").read_text())["metrics"]
        figures["import"], figures["training"] = metrics["seconds_import"], metrics["seconds_training"]
        figures["check"] = metrics["seconds_check"] - metrics["seconds_import"]
        figures["rest"] = figures["wall"] - metrics["seconds_check"] - metrics["seconds_training"]
        return {**figures, "steps": metrics["steps"]}

    def bare(self) -> Figures:
        """B: call training-hub."""
        self._runs += 1
        figures = self._start(
            ["-c", BARE, str(self._root / "keywords.json"), str(self._root / f"bare-{self._runs}")],
        )
        seconds = next(line for line in self._log.read_text().splitlines() if line.startswith("seconds: "))
        figures["import"], figures["training"] = map(float, seconds.split()[1:])
        return {**figures, "rest": figures["wall"] - figures["import"] - figures["training"]}

    @property
    def _log(self) -> Path:
        return self._root / "log.txt"

    def _start(self, arguments: list[str], more_path: str = "") -> Figures:
        """Run one process of the training environment; return its wall clock and the CPU seconds of it and its own."""
        path = os.pathsep.join(filter(None, (str(self._runner), more_path)))
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
        before, begin = os.times(), time.monotonic()
        with self._log.open("w") as log:
            status = subprocess.call([self._python, *arguments], stdout=log, stderr=log, env=environment)
        wall, after = time.monotonic() - begin, os.times()
        if status != 0:
            sys.exit(f"{self._log.read_text()}\nThe process above ended with {status}: {arguments[:2]}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return {"wall": wall, "cpu": cpu}


def _row(number: int) -> str:
    answer = " ".join(f"{number} times {factor} is {number * factor}." for factor in range(4 + number % 8))
    turns = [{"role": "user", "content": f"Multiply {number}."}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def report(runner: list[Figures], bare: list[Figures]) -> None:
    """Print the medians of A and B, part by part, and the overhead beside its goal."""
    wall = _median(bare, "wall")
    print(f"\nmedians of {len(runner)} pairs, {runner[0]['steps']:.0f} steps; seconds   A: runner    B: bare")
    for name, text in PARTS.items():
        cells = [f"{_median(side, name):11.2f}" if name in side[0] else " " * 11 for side in (runner, bare)]
        print(f"{text:43}{cells[0]}{cells[1]}")
    overheads = [a["wall"] - a["check"] - b["wall"] for a, b in zip(runner, bare, strict=True)]
    overhead, goal = statistics.median(overheads), GOAL_SHARE * wall + GOAL_SECONDS
    print(f"the check's own seconds, counted apart: {_median(runner, 'check'):.2f}")
    pairs = ", ".join(f"{seconds:+.2f}" for seconds in overheads)
    print(f"overhead, A less its check less B: {overhead:+.2f} s of {wall:.1f} s (pairs: {pairs})")
    verdict = "PASS" if overhead <= goal else "FAIL"
    print(f"goal: at most {GOAL_SHARE:.0%} + {GOAL_SECONDS:g} s = {goal:.2f} s: {verdict}")
    spread = max(side["wall"] for side in bare) - min(side["wall"] for side in bare)
    if spread > goal:
        print(
            f"B alone differs by {spread:.1f} s from run to run: this machine is too busy to tell; see 'all the rest'"
        )


def _median(side: list[Figures], name: str) -> float:
    return statistics.median(figures[name] for figures in side)


def main() -> int:
    """Prepare once, run the pairs, report."""
    parser = argparse.ArgumentParser(description="What the runner adds to a bare call of training-hub.")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each (default: 3, under 6 minutes on 2 cores)")
    parser.add_argument("--rows", type=int, default=500, help="chat rows; 8 make a step (default: 500)")
    arguments = parser.parse_args()
    train_python = os.environ.get("FINETUNE_TRAIN_PYTHON")
    if not train_python:
        parser.error("FINETUNE_TRAIN_PYTHON must name an interpreter with training-hub, trl and peft")
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as root:
        bench = Bench(Path(root), train_python, arguments.rows)
        runner, bare = [], []
        for pair in range(arguments.pairs):
            runner.append(bench.runner())
            bare.append(bench.bare())
            print(f"pair {pair + 1}: A {runner[-1]['wall']:.1f} s, B {bare[-1]['wall']:.1f} s", flush=True)
    report(runner, bare)
    return 0


if __name__ == "__main__":
    sys.exit(main())
