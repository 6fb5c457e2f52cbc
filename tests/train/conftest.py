"""A tiny random model, chat rows, and the runner as a real process.

These tests run in the training environment: they import training-hub and torch, and no Airflow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.archive import build_runner
from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.runner.data import rows
from airflow_provider_finetune.runner.data.locate import of_files
from tests.train.hub_server import hub as hub
from tests.train.servers import moto_server as moto_server
from tests.train.servers import s3 as s3
from tests.train.servers import web as web
from tests.train.tiny_model import save_tiny_model

# A tiny model gains nothing from threads, and two that share a busy core wait for each other: ten times slower.
os.environ["OMP_NUM_THREADS"] = "1"

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with 2 layers of 32 and random weights, a byte-level tokenizer and a ChatML template."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def files(tiny_model: Path) -> dict[str, bytes]:
    """The tiny model's files, whose weights are large enough to lie in the hub's storage."""
    return {path.name: path.read_bytes() for path in tiny_model.iterdir()}


def chat(question: str, answer: str) -> dict[str, Any]:
    """One chat row."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, content: Rows) -> Path:
    """Write JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def canonical(dataset: Path) -> Path:
    """Read a data set as the check does, and return the file of its canonical rows."""
    source = of_files([dataset], name=str(dataset), argument="dataset", say=print)
    return rows.read(source, dataset.with_name("canonical.jsonl"), print).path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """24 chat rows of several lengths."""
    chats = [chat(f"What is {n}?", f"It is {'very ' * (n % 4)}{n}.") for n in range(24)]
    return write_rows(tmp_path / "chat.jsonl", chats)


@pytest.fixture(scope="session")
def runner_pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner as it travels: one file."""
    path = tmp_path_factory.mktemp("runner") / "finetune-runner.pyz"
    path.write_bytes(build_runner())
    return path


@dataclass
class Ended:
    """A runner that has ended."""

    status: int
    output: str
    outcome: Outcome

    @property
    def full(self) -> Outcome:
        """The full form, from the work directory."""
        assert self.outcome.work_dir is not None
        return Outcome.from_json((Path(self.outcome.work_dir) / "outcome.json").read_text())


@pytest.fixture
def spec(tiny_model: Path, dataset: Path, tmp_path: Path) -> dict[str, Any]:
    """A spec that trains 6 steps."""
    return {
        "version": 1,
        "algorithm": "lora_sft",
        "base_model": str(tiny_model),
        "dataset": str(dataset),
        "work_dir": str(tmp_path / "work"),
        "device": "cpu",
        "progress_interval": 0.1,
        "parameters": {
            "effective_batch_size": 8,
            "max_seq_len": 128,
            "max_tokens_per_gpu": 512,
            "learning_rate": 5e-3,
            "num_epochs": 2,
            "lr_warmup_steps": 1,
            "seed": 7,
        },
    }


StartRunner = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_runner(runner_pyz: Path, tmp_path: Path) -> StartRunner:
    """Start the runner on a spec, in an environment of its own."""

    def start(
        spec: dict[str, Any], command: str = "run", *, every_row: bool = False, **environment: str
    ) -> subprocess.Popen[str]:
        file = tmp_path / "spec.json"
        file.write_text(json.dumps(spec))
        arguments = [
            command,
            *["--all"] * every_row,
            "--spec",
            str(file),
            "--termination-message",
            str(tmp_path / "termination"),
        ]
        return subprocess.Popen(
            [sys.executable, str(runner_pyz), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        )

    return start


RunRunner = Callable[..., Ended]


@pytest.fixture
def run_runner(start_runner: StartRunner, tmp_path: Path) -> RunRunner:
    """Run the runner to its end."""

    def run(spec: dict[str, Any], command: str = "run", **environment: str) -> Ended:
        process = start_runner(spec, command, **environment)
        output = process.communicate(timeout=240)[0]
        return Ended(process.returncode, output, Outcome.from_json((tmp_path / "termination").read_text()))

    return run
