"""A job that asks for a GPU where PyTorch sees none: it ends at once, whatever is to be trained, on any machine."""

from __future__ import annotations

import time

import pytest

from tests.gpu.conftest import Spec, of
from tests.train.conftest import RunRunner


@pytest.mark.parametrize("algorithm", ["osft", "sft", "lora_sft"])
def test_a_job_that_asks_for_a_gpu_without_one_fails_at_once(run_runner: RunRunner, spec: Spec, algorithm: str) -> None:
    began = time.monotonic()
    ended = run_runner(of(spec, algorithm), CUDA_VISIBLE_DEVICES="")
    failure = ended.outcome.failure
    assert failure is not None
    assert (ended.status, failure.failure_class, failure.cause) == (1, "infrastructure", "no_cuda_device")
    assert "driver" in failure.cure
    assert "data: " not in ended.output, "nothing is read before"
    assert time.monotonic() - began < 60
