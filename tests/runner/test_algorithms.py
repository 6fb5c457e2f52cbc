"""How many rows make an optimizer step, and which keywords are the user's to set."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms
from airflow_provider_finetune.runner.failures import UserError


def spec(batch: int, tokens: int = 32000, **extra_args: Any) -> TrainingSpec:
    """A LoRA training."""
    return TrainingSpec(
        algorithm="lora_sft",
        base_model="m",
        dataset="d",
        work_dir="w",
        parameters={"effective_batch_size": batch, "max_tokens_per_gpu": tokens, "max_seq_len": 1},
        extra_args=extra_args,
    )


@pytest.mark.parametrize(
    ("wanted", "device", "longest", "micro", "accumulation"),
    [
        (128, "cuda", 100, 2, 64),
        (127, "cuda", 100, 1, 127),
        (128, "cpu", 100, 32, 4),
        (128, "cpu", 9000, 1, 128),
        (6, "cpu", 1000, 3, 2),
        (1, "cpu", 1, 1, 1),
    ],
)
def test_the_effective_batch_is_split_exactly(
    wanted: int, device: str, longest: int, micro: int, accumulation: int
) -> None:
    found = algorithms.batching(spec(wanted), device=device, longest=longest)
    assert (found.micro_batch_size, found.accumulation_steps, found.effective) == (micro, accumulation, wanted)


def test_a_lower_limit_of_tokens_makes_smaller_micro_batches() -> None:
    assert algorithms.batching(spec(128, tokens=800), device="cpu", longest=100).micro_batch_size == 8


@pytest.mark.parametrize(
    ("extra_args", "micro", "accumulation"),
    [
        ({"micro_batch_size": 4}, 4, 2),
        ({"gradient_accumulation_steps": 4}, 2, 4),
        ({"gradient_accumulation_steps": 3}, 2, 3),
        ({"micro_batch_size": 3}, 3, 3),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 2}, 2, 2),
        ({"gradient_accumulation_steps": 100}, 1, 100),
    ],
)
def test_sizes_in_extra_args_win_and_the_effective_batch_is_what_they_make(
    extra_args: dict[str, int], micro: int, accumulation: int
) -> None:
    found = algorithms.batching(spec(8, **extra_args), device="cpu", longest=10)
    assert (found.micro_batch_size, found.accumulation_steps) == (micro, accumulation)


@pytest.mark.parametrize("name", ["micro_batch_size", "gradient_accumulation_steps"])
@pytest.mark.parametrize("value", [0, -2, "4", 2.0, True])
def test_a_size_that_is_no_whole_number_above_0_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name) as raised:
        algorithms.batching(spec(8, **{name: value}), device="cpu", longest=10)
    assert raised.value.failure.cause == "extra_args_wrong"


@pytest.mark.parametrize("name", ["learning_rate", "save_model", "effective_batch_size", "backend", "data_path"])
def test_a_keyword_that_the_operator_sets_is_not_the_users(name: str) -> None:
    with pytest.raises(UserError, match=name):
        algorithms.with_extra_args(spec(8, **{name: 1}), {"learning_rate": 1e-4})


def test_the_way_of_reading_the_data_and_further_keywords_are_the_users() -> None:
    sent = {"dataset_type": "passthrough"}
    extra_args: dict[str, Any] = {"dataset_type": "chat_template", "weight_decay": 0.1}
    assert algorithms.with_extra_args(spec(8, **extra_args), sent) == extra_args


@pytest.mark.parametrize(
    ("rows", "epochs", "samples", "saves"),
    [(24, 2, 16, True), (24, 2, 48, True), (24, 1, 9, False), (21, 2, 21, True), (21, 2, 29, True), (21, 2, 30, False)],
)
def test_sft_on_a_gpu_must_meet_a_multiple_of_save_samples(rows: int, epochs: int, samples: int, saves: bool) -> None:
    sizes = {"effective_batch_size": 8, "num_epochs": epochs, "checkpoint_at_epoch": False, "save_samples": samples}
    sft = TrainingSpec(algorithm="sft", base_model="m", dataset="d", work_dir="w", parameters={**sizes})
    algorithms.ensure_a_model_is_saved(sft, rows)
    if saves:
        algorithms.ensure_a_model_is_saved(sft, rows, meets=True)
    else:
        with pytest.raises(UserError, match=f"no batch of 8 ends at a multiple of training_save_samples={samples}"):
            algorithms.ensure_a_model_is_saved(sft, rows, meets=True)
