"""Measure tokens a second of the runner on a GPU against a bare call of training-hub: same model, rows and keywords.

Run it with an interpreter that has this package; ``FINETUNE_TRAIN_PYTHON`` names one with training-hub where that is
another::

    FINETUNE_TRAIN_PYTHON=.../python python bench/gpu.py --pairs 3

Without a CUDA device that PyTorch can use it says so and measures nothing.

* A: ``finetune-runner.pyz run``: check, training, proof of the model, publication, outcome.
* B: a fresh interpreter that imports training-hub and calls ``osft``, ``sft`` or ``lora_sft`` with the very keywords,
  and on the very rows, that the check makes for A.

Two rates of each: that of all steps but the first by the backend's own clock, which nothing around it should change;
and all tokens by the seconds of the whole call, in which the libraries start processes, load, train and save. LoRA's
backend has no clock of its own. The wall clock of the whole stands beside them. A and B alternate, and the medians are
compared. OSFT runs as in mini-trainer's own tests, and SFT with ``disable_flash_attn``, where flash-attn is missing;
LoRA is left out where Unsloth is.
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
from typing import Any

from airflow_provider_finetune.archive import runner_bytes
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower
from airflow_provider_finetune.runner.reporting.series import Series

GOAL_SHARE = 0.02
ALGORITHMS = ("osft", "sft", "lora_sft")

ASK = """
import importlib.util, json, torch
there = torch.cuda.is_available()
print(json.dumps({
    "gpu": torch.cuda.get_device_name() if there else None,
    "torch": torch.__version__,
    **{name: importlib.util.find_spec(name) is not None for name in ("flash_attn", "unsloth")},
}))
"""

PREPARE = """
import json, os, sys
from pathlib import Path
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.check import check
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.tries.workdir import WorkDir
from tests.train.tiny_model import save_tiny_model
root, layers, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
save_tiny_model(root / "model", layers=layers, width=width, dtype="bfloat16")
for file in sorted(root.glob("spec-*.json")):
    spec = TrainingSpec.from_json(file.read_text())
    prepared = check(spec, WorkDir(root / "prepared" / spec.algorithm), Events(os.open(os.devnull, os.O_WRONLY)))
    (root / f"keywords-{spec.algorithm}.json").write_text(json.dumps(prepared.keywords))
"""

BARE = """
import json, sys, time
algorithm, keywords, output = sys.argv[1:]
if algorithm == "lora_sft":
    import unsloth
import training_hub
imported = time.monotonic()
getattr(training_hub, algorithm)(**{**json.load(open(keywords)), "ckpt_output_dir": output})
print("\\nseconds:", time.monotonic() - imported)
"""

Figures = dict[str, float]
"""By name, see :data:`PARTS`."""

PARTS = {
    "steps": "tokens/s of the steps, by the backend",
    "call": "tokens/s of the whole call",
    "wall": "seconds of the whole",
}


class Bench:
    """The files and processes of one measurement below ``root``."""

    def __init__(self, root: Path, train_python: str, there: dict[str, Any], arguments: argparse.Namespace) -> None:
        self._root, self._python, self._runs = root, train_python, 0
        self._runner = root / "finetune-runner.pyz"
        self._runner.write_bytes(runner_bytes())
        self._testing = {} if there["flash_attn"] else {"TESTING": "true"}
        (root / "chat.jsonl").write_text("".join(_row(number) for number in range(arguments.rows)))
        self.algorithms = [name for name in ALGORITHMS if name != "lora_sft" or there["unsloth"]]
        for algorithm in self.algorithms:
            self._spec(algorithm).write_text(json.dumps(self._document(algorithm, there, arguments.epochs)))
        repository = str(Path(__file__).parents[1])
        self._start(["-c", PREPARE, str(root), str(arguments.layers), str(arguments.width)], more_path=repository)

    def runner(self, algorithm: str) -> Figures:
        """A: run the runner on the spec."""
        wall = self._start([str(self._runner), "run", "--spec", str(self._spec(algorithm))])
        newest = max((self._root / "work" / algorithm).iterdir(), key=lambda entry: int(entry.name))
        metrics = json.loads((newest / "outcome.json").read_text())["metrics"]
        steps = metrics["tokens_per_second"] if algorithm != "lora_sft" else 0.0
        return {"steps": steps, "call": metrics["tokens"] / metrics["seconds_training"], "wall": wall}

    def bare(self, algorithm: str) -> Figures:
        """B: call training-hub."""
        self._runs += 1
        output = self._root / f"bare-{self._runs}"
        wall = self._start(["-c", BARE, algorithm, str(self._root / f"keywords-{algorithm}.json"), str(output)])
        said = [line for line in self._log.read_text().splitlines() if line.startswith("seconds: ")]
        series = Series(MetricsFollower(output, algorithm, 1).points())  # type: ignore[arg-type]
        tokens = series.summary()["tokens"] or 0
        return {"steps": series.tokens_per_second or 0.0, "call": tokens / float(said[-1].split()[1]), "wall": wall}

    @property
    def _log(self) -> Path:
        return self._root / "log.txt"

    def _spec(self, algorithm: str) -> Path:
        return self._root / f"spec-{algorithm}.json"

    def _document(self, algorithm: str, there: dict[str, Any], epochs: int) -> dict[str, Any]:
        extra = {"disable_flash_attn": True} if algorithm == "sft" and not there["flash_attn"] else {}
        sizes = {"effective_batch_size": 64, "max_seq_len": 512, "max_tokens_per_gpu": 16384}
        return {
            "version": 1,
            "algorithm": algorithm,
            "base_model": str(self._root / "model"),
            "dataset": str(self._root / "chat.jsonl"),
            "work_dir": str(self._root / "work" / algorithm),
            "device": "cuda",
            "parameters": {**sizes, "num_epochs": epochs, "learning_rate": 1e-4, "seed": 7},
            "extra_args": extra,
        }

    def _start(self, arguments: list[str], more_path: str = "") -> float:
        """Run one process of the training environment; return its seconds."""
        environment = {
            **os.environ,
            **self._testing,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PATH": os.pathsep.join((os.path.dirname(self._python), os.environ.get("PATH", os.defpath))),
            "PYTHON_EXEC": self._python,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(self._runner), more_path, os.environ.get("PYTHONPATH")))),
        }
        begin = time.monotonic()
        with self._log.open("w") as log:
            status = subprocess.call([self._python, *arguments], stdout=log, stderr=log, env=environment)
        if status != 0:
            sys.exit(f"{self._log.read_text()}\nThe process above ended with {status}: {arguments[:2]}")
        return time.monotonic() - begin


def _row(number: int) -> str:
    answer = " ".join(f"{number} times {factor} is {number * factor}." for factor in range(4 + number % 12))
    turns = [{"role": "user", "content": f"Multiply {number}."}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def report(algorithm: str, runner: list[Figures], bare: list[Figures]) -> None:
    """Print the medians of A and B, and how far A's rate of the steps is behind B's."""
    print(f"\n{algorithm}, medians of {len(runner)} pairs{'A: runner':>28}{'B: bare':>13}")
    for name, text in PARTS.items():
        cells = [f"{_median(side, name):13,.1f}" if _median(side, name) else " " * 13 for side in (runner, bare)]
        print(f"{text:40}{cells[0]}{cells[1]}")
    name = "steps" if _median(bare, "steps") else "call"
    ratio = _median(runner, name) / _median(bare, name)
    verdict = "PASS" if ratio >= 1 - GOAL_SHARE else "FAIL"
    print(f"A by B, {PARTS[name]}: {ratio:.3f}; goal: at least {1 - GOAL_SHARE:g}: {verdict}")
    rates = [side[name] for side in bare]
    if (spread := (max(rates) - min(rates)) / _median(bare, name)) > GOAL_SHARE:
        print(f"B alone differs by {spread:.1%} from run to run: longer trainings tell more (--epochs)")


def _median(side: list[Figures], name: str) -> float:
    return statistics.median(figures[name] for figures in side)


def main() -> int:
    """Prepare once, run the pairs, report."""
    parser = argparse.ArgumentParser(description="Tokens a second of the runner on a GPU, and of training-hub alone.")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each for each algorithm (default: 3)")
    parser.add_argument("--rows", type=int, default=4000, help="chat rows; 64 make a step (default: 4000)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over them (default: 1)")
    parser.add_argument("--layers", type=int, default=8, help="of the model (default: 8)")
    parser.add_argument("--width", type=int, default=1024, help="of the model (default: 1024)")
    arguments = parser.parse_args()
    train_python = os.environ.get("FINETUNE_TRAIN_PYTHON", sys.executable)
    asked = subprocess.run([train_python, "-c", ASK], capture_output=True, text=True)
    if asked.returncode != 0:
        print(asked.stderr, file=sys.stderr)
        parser.error(
            f"PyTorch of {train_python} tells of no GPU: FINETUNE_TRAIN_PYTHON must name one with training-hub"
        )
    there = json.loads(asked.stdout)
    if there["gpu"] is None:
        print("PyTorch has no CUDA device here: nothing is measured")
        return 0
    print(f"{there['gpu']}, PyTorch {there['torch']}; flash-attn: {'yes' if there['flash_attn'] else 'no'}")
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as root:
        bench = Bench(Path(root), train_python, there, arguments)
        if "lora_sft" not in bench.algorithms:
            print("lora_sft is left out: there is no Unsloth")
        for algorithm in bench.algorithms:
            runner, bare = [], []
            for pair in range(arguments.pairs):
                runner.append(bench.runner(algorithm))
                bare.append(bench.bare(algorithm))
                print(
                    f"{algorithm}, pair {pair + 1}: A {runner[-1]['wall']:.1f} s, B {bare[-1]['wall']:.1f} s",
                    flush=True,
                )
            report(algorithm, runner, bare)
    return 0


if __name__ == "__main__":
    sys.exit(main())
