"""LoRA on a CPU: each parameter changes what it names.

* only the assistant's tokens are trained, end of turn included
* micro-batch and accumulation do not change the result, the effective batch size does
* r, alpha, dropout, targets, rsLoRA, DoRA, scheduler, warm-up, seed, epochs, checkpoints, evaluation
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import training_hub
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_finetune.runner import masking
from airflow_provider_finetune.runner.backends import trl_lora
from airflow_provider_finetune.runner.data import rows
from airflow_provider_finetune.runner.handover import IGNORED, Handover
from airflow_provider_finetune.runner.masking import Encoding
from tests.train.conftest import canonical


@pytest.fixture
def train(tiny_model: Path, dataset: Path, tmp_path: Path) -> Any:
    """Train with training-hub's lora_sft on the tokenised rows and return metrics and output directory."""
    data = tmp_path / "train.parquet"
    masking.tokenise(
        rows.rows(canonical(dataset)), AutoTokenizer.from_pretrained(tiny_model), Encoding(128), Handover(data)
    )
    runs = iter(range(100))

    def run(**keywords: Any) -> tuple[list[dict[str, Any]], Path]:
        output = tmp_path / f"out-{next(runs)}"
        common = {
            "effective_batch_size": 8,
            "num_epochs": 1,
            "learning_rate": 5e-3,
            "max_seq_len": 128,
            "seed": 7,
            "data_path": str(data),
            "dataset_type": "passthrough",
        }
        training_hub.lora_sft(
            model_path=str(tiny_model),
            ckpt_output_dir=str(output),
            backend=trl_lora.register(),
            **{**common, **keywords},
        )
        lines = (output / "training_metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "loss" in row or "eval_loss" in row], output

    return run


def adapter(output: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((output / "adapter_config.json").read_text())
    return config


def losses(metrics: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in metrics if "loss" in row]


def test_the_first_loss_is_the_mean_over_the_assistants_tokens(train: Any, tiny_model: Path, dataset: Path) -> None:
    metrics, _ = train(effective_batch_size=24, gradient_accumulation_steps=3)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    total, count = 0.0, 0
    for row in rows.rows(canonical(dataset)):
        encoded = masking.encode(row, tokenizer, Encoding(128))
        trained = [label for label in encoded.labels[1:] if label != IGNORED]
        with torch.no_grad():
            loss = base(input_ids=torch.tensor([encoded.ids]), labels=torch.tensor([encoded.labels])).loss.item()
        total, count = total + loss * len(trained), count + len(trained)
    assert losses(metrics)[0] == pytest.approx(total / count, rel=1e-4)


def test_accumulation_does_not_change_the_training_and_the_effective_batch_does(train: Any) -> None:
    whole, _ = train(gradient_accumulation_steps=1)
    split, _ = train(gradient_accumulation_steps=4)
    smaller, _ = train(effective_batch_size=4)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-3)
    assert (len(losses(whole)), len(losses(smaller))) == (3, 6)


def test_rank_alpha_dropout_and_targets_are_those_of_the_adapter(train: Any) -> None:
    _, output = train(lora_r=4, lora_alpha=6, lora_dropout=0.25, target_modules=["q_proj", "down_proj"])
    config = adapter(output)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 6, 0.25)
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]


def test_without_targets_every_linear_layer_but_the_head_is_adapted(train: Any) -> None:
    _, output = train()
    adapted = {name.rsplit(".")[-1] for name in adapter(output)["target_modules"]}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_rslora_and_dora_change_the_training(train: Any) -> None:
    plain, _ = train()
    for option in ("use_rslora", "use_dora"):
        metrics, output = train(**{option: True})
        assert adapter(output)[option] is True
        assert losses(metrics) != losses(plain)


def test_equal_seeds_give_equal_losses_and_other_seeds_do_not(train: Any) -> None:
    first, again, other = train(seed=1)[0], train(seed=1)[0], train(seed=2)[0]
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)


def test_learning_rate_warms_up_and_follows_the_scheduler(train: Any) -> None:
    def rates(scheduler: str) -> list[float]:
        return [row["learning_rate"] for row in train(warmup_steps=2, num_epochs=2, lr_scheduler=scheduler)[0]]

    constant, linear = rates("constant_with_warmup"), rates("linear")
    assert constant == pytest.approx([0, 2.5e-3, 5e-3, 5e-3, 5e-3, 5e-3])
    assert linear == pytest.approx([0, 2.5e-3, 5e-3, 3.75e-3, 2.5e-3, 1.25e-3])


def test_a_checkpoint_is_left_at_the_end_of_each_epoch(train: Any) -> None:
    _, output = train(num_epochs=2, checkpoint_at_epoch=True)
    assert sorted(entry.name for entry in output.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


def test_evaluation_points_come_from_the_evaluation_data(train: Any, tmp_path: Path) -> None:
    metrics, _ = train(eval_data_path=str(tmp_path / "train.parquet"), eval_steps=2)
    assert [row["step"] for row in metrics if "eval_loss" in row] == [2, 3]


def test_the_librarys_own_chat_rendering_can_be_asked_for(train: Any, dataset: Path, tmp_path: Path) -> None:
    masked, _ = train(effective_batch_size=24)
    everything, _ = train(effective_batch_size=24, data_path=str(dataset), dataset_type="chat_template")
    assert losses(masked)[0] != pytest.approx(losses(everything)[0], rel=1e-6)
