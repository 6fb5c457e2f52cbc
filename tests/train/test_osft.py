"""OSFT on a CPU: what is trained is what mini-trainer trains on a GPU, and the runner brings it from data to model.

* only the directions of small singular values change in a targeted matrix, and everything else is trained whole
* the first loss, the order of the rows, the optimizer step and the schedule are mini-trainer's
* patterns by architecture, not by path; ratio; unmask; tokenised rows; final and epoch models; seed
* through the runner: proven full model, metrics, outcome; what is refused
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import training_hub
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_finetune.runner import masking, targets
from airflow_provider_finetune.runner.backends import osft
from airflow_provider_finetune.runner.data import rows
from airflow_provider_finetune.runner.handover import Handover
from airflow_provider_finetune.runner.masking import Encoding
from airflow_provider_finetune.runner.reporting.metrics import metrics_file
from tests.train.conftest import RunRunner, canonical, chat, write_rows

Spec = dict[str, Any]
TARGETS = ["self_attn.q_proj", "mlp.up_proj"]


@pytest.fixture
def train(tiny_model: Path, dataset: Path, tmp_path: Path) -> Any:
    """Train with training-hub's osft on the tokenised rows and return metrics and output directory."""
    data, tokenizer = tmp_path / "train.parquet", AutoTokenizer.from_pretrained(tiny_model)
    masking.tokenise(rows.rows(canonical(dataset)), tokenizer, Encoding(128), Handover(data))
    runs = iter(range(100))

    def run(**keywords: Any) -> tuple[list[dict[str, Any]], Path]:
        output = tmp_path / f"out-{next(runs)}"
        common = {
            "effective_batch_size": 8,
            "max_tokens_per_gpu": 1000,
            "max_seq_len": 128,
            "learning_rate": 5e-3,
            "seed": 7,
            "unfreeze_rank_ratio": 0.25,
            "target_patterns": TARGETS,
        }
        training_hub.osft(
            model_path=str(tiny_model),
            data_path=str(data),
            ckpt_output_dir=str(output),
            backend=osft.register(),
            **{**common, **keywords},
        )
        return [json.loads(line) for line in metrics_file(output, "osft").read_text().splitlines()], output

    return run


def losses(metrics: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in metrics]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach() for name, weight in AutoModelForCausalLM.from_pretrained(directory).named_parameters()
    }


def frozen_part(change: torch.Tensor, base: torch.Tensor, ratio: float) -> float:
    """How much of a change lies along the directions that are frozen, at most."""
    left, _, right = torch.linalg.svd(base, full_matrices=False)
    rank = int(min(base.shape) * (1 - ratio))
    return float(max((left[:, :rank].T @ change).abs().max(), (change @ right[:rank].T).abs().max()))


def test_a_targeted_matrix_keeps_its_large_directions_and_all_else_is_trained_whole(
    train: Any, tiny_model: Path
) -> None:
    _, output = train(num_epochs=4)
    base, trained = weights(tiny_model), weights(output / "hf_format" / "samples_96")
    for name, weight in base.items():
        change = trained[name] - weight
        assert change.abs().max() > 1e-3, f"{name} is trained"
        if weight.ndim == 2:
            targeted = any(pattern in name for pattern in TARGETS)
            assert (frozen_part(change, weight, 0.25) < 1e-6) == targeted, name


def test_the_first_steps_are_those_of_mini_trainers_own_loop(train: Any, tiny_model: Path, tmp_path: Path) -> None:
    from mini_trainer.osft_utils import optim_wrapper
    from mini_trainer.sampler import EpochSampler, padded_mb_collate_fn

    metrics, _ = train(num_epochs=2, warmup_steps=1)
    model = osft.load(str(tiny_model), 0.25, TARGETS, trust_remote_code=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optim_wrapper(torch.optim.AdamW(trained, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0), model)
    import pyarrow.parquet as pq

    data = pq.read_table(tmp_path / "train.parquet").to_pylist()
    for row in data:
        row["num_loss_counted_tokens"] = sum(label != -100 for label in row["labels"][1:])
    order, expected = list(EpochSampler(len(data), seed=7)), []
    for step in range(3):
        batch = [data[index] for index in order[8 * step : 8 * step + 8]]
        counted = sum(row["num_loss_counted_tokens"] for row in batch)
        inputs = padded_mb_collate_fn(batch, counted, 1)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / counted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # Warm-up of one step, then the cosine over the five that are left.
        optimizer.param_groups[0]["lr"] = metrics[step]["lr"]
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item() / counted)
    assert losses(metrics)[:3] == pytest.approx(expected, rel=1e-5), "in float32"
    assert [row["num_loss_counted_tokens"] for row in metrics[:1]] == [
        sum(data[index]["num_loss_counted_tokens"] for index in order[:8])
    ]
    assert [row["lr"] for row in metrics] == pytest.approx([0, 5e-3, 4.523e-3, 3.273e-3, 1.727e-3, 0.477e-3], rel=1e-3)


def test_each_parameter_changes_what_it_names(train: Any, tiny_model: Path) -> None:
    plain, output = train()
    for option in (
        {"seed": 8},
        {"unfreeze_rank_ratio": 0.75},
        {"target_patterns": ["mlp"]},
        {"effective_batch_size": 4},
        {"lr_scheduler": "constant"},
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.9}},
        {"weight_decay": 10.0},
    ):
        assert losses(train(**option)[0]) != losses(plain), option
    assert losses(train()[0]) == losses(plain)
    assert losses(train(gradient_accumulation_steps=4)[0]) == pytest.approx(losses(plain), rel=1e-3)
    untouched = weights(tiny_model)["model.layers.0.self_attn.k_proj.weight"]
    assert not weights(output / "hf_format" / "samples_24")["model.layers.0.self_attn.k_proj.weight"].equal(untouched)


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({}, ["samples_48"]),
        ({"checkpoint_at_epoch": True}, ["samples_24", "samples_48"]),
        ({"checkpoint_at_epoch": True, "save_final_checkpoint": False}, ["samples_24", "samples_48"]),
        ({"checkpoint_at_epoch": True, "save_total_limit": 1}, ["samples_48"]),
    ],
)
def test_models_lie_where_mini_trainer_puts_them(train: Any, options: dict[str, Any], saved: list[str]) -> None:
    _, output = train(num_epochs=2, **options)
    assert sorted(path.name for path in (output / "hf_format").iterdir()) == saved
    config = json.loads((output / "hf_format" / "samples_48" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("model_type", "pattern"),
    [("llama", "mlp.gate_proj"), ("qwen2", "mlp.gate_proj"), ("phi3", "mlp.gate_up_proj"), ("opt", "fc1"),
     ("gpt_neo", "attn.attention.q_proj"), ("qwen3_5", "linear_attn.out_proj"), ("gpt_oss", "self_attn.o_proj")],
)  # fmt: skip
def test_patterns_are_those_of_the_architecture(model_type: str, pattern: str) -> None:
    assert pattern in targets.patterns_of(model_type)


@pytest.fixture
def spec(spec: Spec) -> Spec:
    """A spec of OSFT that trains 6 steps."""
    return {**spec, "algorithm": "osft"}


def test_a_run_leaves_a_proven_model(run_runner: RunRunner, spec: Spec, tmp_path: Path, tiny_model: Path) -> None:
    # mini-trainer itself would take this path for the architecture OPT, and part q_proj, k_proj and v_proj only.
    shutil.copytree(tiny_model, tmp_path / "opt" / "model")
    spec |= {"base_model": str(tmp_path / "opt" / "model"), "keep": "all"}
    spec["parameters"] |= {"num_epochs": 20, "osft_memory_efficient_init": False, "save_samples": 3}
    ended = run_runner(spec)
    assert (ended.status, ended.outcome.status) == (0, "succeeded"), ended.output
    outcome = ended.full
    assert (
        "OSFT: 14 of 16 matrices are parted, and the 25% of their ranks that matter least are trained" in ended.output
    )
    assert "training starts on the CPU (OSFT by TRL, float32)" in ended.output
    assert "training_osft_memory_efficient_init=False has no effect" in ended.output
    assert "training_save_samples=3 has no effect" in ended.output
    assert "step 60/60 (100 %)  epoch 20.0/20" in ended.output
    assert (outcome.model_kind, outcome.metrics["steps"]) == ("full", 60)
    assert outcome.metrics["loss"] < outcome.loss_curve[0][1] / 2
    assert outcome.versions["rhai-innovation-mini-trainer"]
    assert (outcome.plan["steps"], outcome.plan["disk"][0]["needed"] > 0) == (60, True)
    base, trained = weights(tiny_model), weights(tmp_path / "work" / "1" / "model")
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        assert frozen_part(trained[name] - base[name], base[name], 0.25) < 1e-6, name


def test_tokenised_rows_are_trained_as_they_are(
    run_runner: RunRunner, spec: Spec, dataset: Path, tmp_path: Path
) -> None:
    from_chats = run_runner(spec).full
    tokens = tmp_path / "tokens.jsonl"
    encoded = [
        masking.encode(row, AutoTokenizer.from_pretrained(spec["base_model"]), Encoding(128))
        for row in rows.rows(canonical(dataset))
    ]
    # The chats beside them are not looked at where tokenised rows are asked for.
    content = [{"messages": [], "input_ids": row.ids, "labels": row.labels} for row in encoded]
    write_rows(tokens, [*content, {"input_ids": [1, 2], "labels": [1]}, {"input_ids": [100_000], "labels": [100_000]}])
    spec |= {"dataset": str(tokens), "max_dropped": 0.1, "show_samples": 1}
    spec["parameters"]["use_processed_dataset"] = True
    ended = run_runner(spec)
    assert ended.status == 0, ended.output
    assert "JSONL with tokenised rows, 26 rows" in ended.output
    assert "1 row: its 'input_ids' and 'labels' are not of one length (line 25)" in ended.output
    assert "1 row: its 'input_ids' have a token that the model's vocabulary lacks (line 26)" in ended.output
    assert "those that its labels name" in ended.output
    assert "<|im_start|>assistant\n| ⟦It is 0.<|im_end|>⟧" in ended.output
    assert ended.full.loss_curve == from_chats.loss_curve


def test_chats_are_refused_where_tokenised_rows_are_asked_for(run_runner: RunRunner, spec: Spec) -> None:
    spec["parameters"]["use_processed_dataset"] = True
    failure = run_runner(spec, "check").outcome.failure
    assert failure is not None
    assert "24 rows: it has the form 'messages', and the data set the form 'tokens'" in failure.message


def test_prompts_are_trained_where_messages_are_unmasked(run_runner: RunRunner, spec: Spec, dataset: Path) -> None:
    write_rows(dataset, [chat(f"What is {n}?", "It is.") for n in range(24)])
    masked = run_runner(spec, "check").outcome.dataset["trained_tokens"]
    spec["parameters"]["unmask_messages"] = True
    assert run_runner(spec, "check").outcome.dataset["trained_tokens"] > masked


@pytest.mark.parametrize(
    ("change", "cause", "said"),
    [
        ({"target_patterns": ["attention.dense"]}, "no_matrix_targeted", "no name of the model's has attention.dense"),
        ({"lr_scheduler": "zigzag"}, "arguments_refused", "zigzag"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(
    run_runner: RunRunner, spec: Spec, change: dict[str, Any], cause: str, said: str
) -> None:
    spec["parameters"] |= change
    failure = run_runner(spec, "check").outcome.failure
    assert failure is not None
    assert (failure.failure_class, failure.cause) == ("user", cause)
    assert said in failure.message


def test_several_processes_are_refused_on_a_cpu(run_runner: RunRunner, spec: Spec) -> None:
    failure = run_runner({**spec, "processes_per_node": 2}).outcome.failure
    assert failure is not None
    assert (failure.failure_class, failure.cause) == ("user", "processes_wrong")
