"""What a training on a GPU needs beside training-hub, and what it can do without."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.preconditions import ensure_installed_on_cuda, find_device


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter with PyTorch and nothing that needs a GPU."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.delenv("TESTING", raising=False)


def of(algorithm: str, **extra_args: Any) -> TrainingSpec:
    return TrainingSpec(algorithm=algorithm, base_model="m", dataset="d", work_dir="w", extra_args=extra_args)


@pytest.mark.parametrize(
    ("algorithm", "missing", "cure"),
    [
        ("osft", "flash-attn", "training_resource_gpu_per_worker=0"),
        ("sft", "flash-attn", "extra_args={'disable_flash_attn': True}"),
        ("lora_sft", "unsloth", "training-hub[cuda,lora]"),
    ],
)
def test_what_is_missing_is_named_with_a_cure(algorithm: str, missing: str, cure: str) -> None:
    with pytest.raises(UserError, match=f"has no {missing}") as raised:
        ensure_installed_on_cuda(of(algorithm))
    assert cure in raised.value.failure.cure


def test_sft_does_without_flash_attention_where_it_is_told_to() -> None:
    ensure_installed_on_cuda(of("sft", disable_flash_attn=True))


@pytest.mark.parametrize(("algorithm", "does_without"), [("osft", True), ("sft", False), ("lora_sft", False)])
def test_only_mini_trainer_does_without_it_in_its_tests(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, does_without: bool
) -> None:
    monkeypatch.setenv("TESTING", "true")
    if does_without:
        ensure_installed_on_cuda(of(algorithm))
    else:
        with pytest.raises(UserError, match="has no"):
            ensure_installed_on_cuda(of(algorithm))


def test_an_environment_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no torchrun beside"):
        ensure_installed_on_cuda(of("sft", disable_flash_attn=True))


@pytest.mark.parametrize(
    ("said", "cause", "message"),
    [
        (
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update"),
            "driver_too_old",
            "older than the CUDA of the image's PyTorch: RuntimeError: The NVIDIA driver",
        ),
        (
            RuntimeError("Found no NVIDIA driver on your system.\nPlease check"),
            "no_cuda_device",
            "(RuntimeError: Found no",
        ),
        (
            AssertionError("Torch not compiled with CUDA enabled"),
            "no_cuda_device",
            "(AssertionError: Torch not compiled",
        ),
        (None, "no_cuda_device", "that PyTorch can use"),
    ],
)
def test_why_there_is_no_device_is_what_pytorch_says_when_it_begins(
    monkeypatch: pytest.MonkeyPatch, said: Exception | None, cause: str, message: str
) -> None:
    def begin() -> None:
        if said:
            raise said

    torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False, init=begin))
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(RunFailed) as raised:
        find_device(TrainingSpec(algorithm="sft", base_model="m", dataset="d", work_dir="w", device="cuda"))
    failure = raised.value.failure
    assert (failure.failure_class, failure.cause) == ("infrastructure", cause)
    assert message in failure.message
    assert "\n" not in failure.message
