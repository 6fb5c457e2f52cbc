"""SFT on a CPU: each parameter changes what it names, and the files are those of the CUDA backend.

* the loss is the mean over the trained tokens of all rows of a step
* micro-batch and accumulation do not change the result, the effective batch size does
* cosine schedule with warm-up, seed, optimizer; a checkpoint each epoch, each number of samples, only the last one
* the names in the metrics file, and the proof of a model
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import training_hub
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_finetune.runner import masking, proof, publishing
from airflow_provider_finetune.runner.backends import trl_sft
from airflow_provider_finetune.runner.data import rows
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.handover import IGNORED, Handover
from airflow_provider_finetune.runner.masking import Encoding
from airflow_provider_finetune.runner.reporting.metrics import MetricsFollower, metrics_file
from tests.train.conftest import canonical
from tests.train.tiny_model import CHATML, save_tiny_model


@pytest.fixture
def train(tiny_model: Path, dataset: Path, tmp_path: Path) -> Any:
    """Train with training-hub's sft on the tokenised rows and return metrics and output directory."""
    data = tmp_path / "train.parquet"
    masking.tokenise(
        rows.rows(canonical(dataset)), AutoTokenizer.from_pretrained(tiny_model), Encoding(128), Handover(data)
    )
    runs = iter(range(100))

    def run(**keywords: Any) -> tuple[list[dict[str, Any]], Path]:
        output = tmp_path / f"out-{next(runs)}"
        common = {
            "effective_batch_size": 8,
            "learning_rate": 5e-3,
            "random_seed": 7,
            "checkpoint_at_epoch": False,
            "accelerate_full_state_at_epoch": False,
        }
        training_hub.sft(
            model_path=str(tiny_model),
            data_path=str(data),
            ckpt_output_dir=str(output),
            backend=trl_sft.register(),
            **{**common, **keywords},
        )
        return [json.loads(line) for line in metrics_file(output, "sft").read_text().splitlines()], output

    return run


def losses(metrics: list[dict[str, Any]]) -> list[float]:
    return [row["avg_loss"] for row in metrics]


def saved(output: Path) -> list[str]:
    """The models, and what a training can go on from."""
    found = [*output.glob("hf_format/*"), *output.glob("checkpoint-*")]
    return sorted(str(path.relative_to(output)) for path in found)


def test_the_first_loss_is_the_mean_over_the_assistants_tokens(train: Any, tiny_model: Path, dataset: Path) -> None:
    (first,), _ = train(effective_batch_size=24, gradient_accumulation_steps=3)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    total, count = 0.0, 0
    for row in rows.rows(canonical(dataset)):
        encoded = masking.encode(row, tokenizer, Encoding(128))
        trained = sum(label != IGNORED for label in encoded.labels[1:])
        with torch.no_grad():
            loss = base(input_ids=torch.tensor([encoded.ids]), labels=torch.tensor([encoded.labels])).loss.item()
        total, count = total + loss * trained, count + trained
    assert first["avg_loss"] == pytest.approx(total / count, rel=1e-4)
    assert first["num_loss_counted_tokens"] == count
    assert (first["batch_size"], first["samples_seen"], first["total_samples"]) == (24, 24, 24)


def test_accumulation_does_not_change_the_training_and_the_effective_batch_does(train: Any) -> None:
    whole, _ = train(gradient_accumulation_steps=1)
    split, _ = train(gradient_accumulation_steps=4)
    smaller, _ = train(effective_batch_size=4)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-3)
    assert [row["num_minibatches"] for row in split] == [4, 4, 4]
    assert (len(whole), len(smaller)) == (3, 6)


def test_the_learning_rate_warms_up_and_follows_a_cosine(train: Any) -> None:
    metrics, _ = train(warmup_steps=2, num_epochs=2)
    assert [row["lr"] for row in metrics] == pytest.approx([0, 2.5e-3, 5e-3, 4.268e-3, 2.5e-3, 0.732e-3], rel=1e-3)
    assert [(row["epoch"], row["step"]) for row in metrics] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]


def test_equal_seeds_give_equal_losses_and_other_seeds_do_not(train: Any) -> None:
    first, again, other = (train(random_seed=seed)[0] for seed in (1, 1, 2))
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)


def test_options_of_the_optimizer_change_the_training(train: Any) -> None:
    plain, _ = train()
    for option in ({"beta1": 0.5}, {"beta2": 0.5}, {"eps": 1.0}, {"weight_decay": 10.0}):
        assert losses(train(**option)[0]) != losses(plain), option


def test_a_checkpoint_is_a_model_named_by_the_samples_seen(train: Any, tiny_model: Path) -> None:
    _, output = train(num_epochs=2, checkpoint_at_epoch=True)
    assert saved(output) == ["hf_format/samples_24", "hf_format/samples_48"]
    names = {path.name for path in (output / "hf_format" / "samples_48").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert publishing.find(output, "sft") == output / "hf_format" / "samples_48"
    base, trained = (
        json.loads((directory / "config.json").read_text())
        for directory in (tiny_model, output / "hf_format" / "samples_48")
    )
    assert trained == base, "nothing but the weights is another"


def test_a_checkpoint_is_saved_each_number_of_samples_also_where_batches_step_over_it(train: Any) -> None:
    _, output = train(num_epochs=2, save_samples=20)
    assert saved(output) == ["hf_format/samples_24", "hf_format/samples_40"]
    assert publishing.find(output, "sft") == output / "hf_format" / "samples_40"


def test_only_the_last_one_and_the_full_state_can_be_kept(train: Any) -> None:
    _, output = train(
        num_epochs=2,
        checkpoint_at_epoch=True,
        keep_last_checkpoint_only=True,
        accelerate_full_state_at_epoch=True,
    )
    assert saved(output) == ["checkpoint-6", "hf_format/last_epoch"]
    state = output / "checkpoint-6"
    assert {path.name for path in state.iterdir()} >= {"optimizer.pt", "scheduler.pt", "model.safetensors"}
    assert publishing.find(output, "sft") == output / "hf_format" / "last_epoch"


def test_of_many_checkpoints_the_last_ones_stay_where_no_other_is_wanted(train: Any) -> None:
    _, output = train(
        num_epochs=3, checkpoint_at_epoch=True, accelerate_full_state_at_epoch=True, save_samples=16, save_total_limit=2
    )
    assert saved(output) == ["checkpoint-9", "hf_format/samples_64", "hf_format/samples_72"]


def test_the_metrics_have_the_names_of_the_cuda_backend_and_are_read_as_its(train: Any) -> None:
    from instructlab.training import main_ds

    metrics, output = train(num_epochs=2)
    (theirs,) = re.findall(r"metric_logger\.info\(\s*\{(.*?)\},\s*extra=", inspect.getsource(main_ds.train), re.DOTALL)[
        :1
    ]
    names = set(re.findall(r'^\s*"(\w+)":', theirs, re.MULTILINE))
    assert set(metrics[0]) == names | {"timestamp"}
    points = MetricsFollower(output, "sft", epochs=2).poll()
    assert [point.loss for point in points] == losses(metrics)
    last = points[-1]
    assert (last.step, last.total_steps, last.epoch, last.samples) == (6, 6, 2.0, 48)
    assert last.tokens == sum(row["num_tokens_rank0"] for row in metrics)
    assert last.tokens_per_second is not None
    assert last.grad_norm is not None


@pytest.fixture
def trained(train: Any, tmp_path: Path) -> Path:
    """A model that has learned."""
    return Path(train(checkpoint_at_epoch=True)[1]) / "hf_format" / "samples_24"


def test_a_model_is_proven_that_somebody_else_can_load(trained: Path, tiny_model: Path) -> None:
    proof.prove_full(trained, str(tiny_model), CHATML)


def _poisoned(directory: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    broken.save_pretrained(directory)


def _widened(directory: Path) -> None:
    save_tiny_model(directory, width=64)


def _cut_short(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _without_a_layer(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def _of_other_words(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(directory)


def _of_another_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_poisoned, "not finite"),
        (_widened, "not of the base model's architecture and vocabulary"),
        (_cut_short, "cannot be loaded"),
        (_without_a_layer, "not those of its architecture"),
        (_of_other_words, "has not the base model's vocabulary"),
        (_of_another_template, "its chat template is not"),
    ],
)
def test_a_model_with_a_fault_is_not_proven(trained: Path, tiny_model: Path, damage: Any, said: str) -> None:
    damage(trained)
    with pytest.raises(RunFailed, match=said) as refused:
        proof.prove_full(trained, str(tiny_model), CHATML)
    assert refused.value.failure.cause == "model_not_loadable"


def test_a_model_that_has_learned_nothing_is_the_users_to_mend(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "same")
    with pytest.raises(RunFailed, match="no weight has changed") as refused:
        proof.prove_full(tmp_path / "same", str(tiny_model), CHATML)
    assert refused.value.failure.failure_class == "user"
