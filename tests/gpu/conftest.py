"""A model of a real architecture, chat rows, and the runner as a real process on a GPU.

Tests with the marker ``gpu`` are skipped where PyTorch has no CUDA device. The header says what is missing: without
flash-attn OSFT runs as in mini-trainer's own tests, and SFT by its own option.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import chat, run_runner, runner_pyz, start_runner, write_rows
from tests.train.test_resume import end_at
from tests.train.tiny_model import save_tiny_model

__all__ = ["end_at", "run_runner", "runner_pyz", "start_runner"]

Spec = dict[str, Any]

PACKS = importlib.util.find_spec("flash_attn") is not None
LORA = importlib.util.find_spec("unsloth") is not None


def pytest_report_header() -> list[str]:
    said = [] if PACKS else ["gpu: no flash-attn: OSFT runs with TESTING=true, SFT with disable_flash_attn=True"]
    return said + ([] if LORA else ["gpu: no unsloth: LoRA is skipped"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; PyTorch is asked only where something does."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or (why := _why_not()) is None:
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=why))


def _why_not() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "there is no PyTorch"
    import torch

    return None if torch.cuda.is_available() else "PyTorch has no CUDA device here"


@pytest.fixture(autouse=True)
def without_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mini-trainer do without flash-attn where it is missing: rows are packed all the same, and kept apart."""
    if not PACKS:
        monkeypatch.setenv("TESTING", "true")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with 4 layers of 256 and random float32 weights, a byte-level tokenizer and a ChatML template."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), layers=4, width=256)


@pytest.fixture
def spec(model: Path, tmp_path: Path) -> Spec:
    """A spec that trains 24 steps on 64 chats of several lengths."""
    chats = [chat(f"What is {n}?", f"It is {'very ' * (n % 5)}{n}.") for n in range(64)]
    return {
        "version": 1,
        "algorithm": "osft",
        "base_model": str(model),
        "dataset": str(write_rows(tmp_path / "chat.jsonl", chats)),
        "work_dir": str(tmp_path / "work"),
        "device": "cuda",
        "progress_interval": 0.1,
        "parameters": {
            "effective_batch_size": 16,
            "max_seq_len": 128,
            "max_tokens_per_gpu": 1024,
            "learning_rate": 2e-3,
            "num_epochs": 6,
            "lr_warmup_steps": 1,
            "seed": 7,
        },
    }


def of(spec: Spec, algorithm: str, **parameters: Any) -> Spec:
    """Return a spec for an algorithm, with some parameters changed."""
    changed = {**spec, "algorithm": algorithm, "parameters": {**spec["parameters"], **parameters}}
    if algorithm == "sft" and not PACKS:
        changed["extra_args"] = {"disable_flash_attn": True}
    return changed
