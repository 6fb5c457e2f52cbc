"""SFT through the runner, as a user's task starts it: a real process that trains all weights on the CPU.

* data in, proven full model, metrics and outcome out; what is kept
* rows that are too long are dropped and counted; prompts are trained where somebody asks for it
* checkpoints and the model that is published of them; a training that would leave none is refused
* two nodes train the model that one process trains
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import RunRunner, chat, write_rows
from tests.train.test_nodes import StartNode, losses, start_node

__all__ = ["start_node"]

Spec = dict[str, Any]


@pytest.fixture
def sft(spec: Spec) -> Spec:
    """A spec that trains 6 steps."""
    return {**spec, "algorithm": "sft", "parameters": {**spec["parameters"], "algorithm": "SFT"}}


def test_a_run_leaves_a_proven_model_of_which_every_layer_has_learned(
    run_runner: RunRunner, sft: Spec, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sft["parameters"] |= {"num_epochs": 20, "learning_rate": 5e-3, "use_liger": True}
    sft["output_model"] = (tmp_path / "models" / "answers").as_uri()
    ended = run_runner(sft)
    assert (ended.status, ended.outcome.status) == (0, "succeeded"), ended.output
    outcome = ended.full
    assert (outcome.model_uri, outcome.model_kind) == (sft["output_model"], "full")
    assert "training starts on the CPU (SFT by TRL, float32)" in ended.output
    assert ended.output.count("training_use_liger=True has no effect: Liger kernels need a GPU") == 1
    assert "effective batch 8 = micro-batch 8 x accumulation 1 x 1 process" in ended.output
    assert "step 60/60 (100 %)  epoch 20.0/20" in ended.output
    assert outcome.metrics["steps"] == 60
    assert outcome.metrics["loss"] < outcome.loss_curve[0][1] / 4
    assert outcome.metrics["tokens"] >= 20 * outcome.dataset["tokens"]
    assert 0 < outcome.dataset["trained_share"] < 1
    assert outcome.dataset["loss_on"] == "assistant"

    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "answers")
    base = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    same = [name for name, weight in trained.named_parameters() if weight.equal(base[name])]
    assert not same, "all weights are trained"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "answers")
    question = [{"role": "user", "content": "What is 4?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = trained.generate(**ids, max_new_tokens=20, do_sample=False)[0][ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer).startswith("It is"), "it speaks as it was taught"
    assert not (tmp_path / "work" / "1" / "checkpoints").exists()


def test_rows_that_are_too_long_are_dropped_and_counted_and_none_is_cut(
    run_runner: RunRunner, sft: Spec, dataset: Path
) -> None:
    write_rows(dataset, [chat("Long?", "yes " * 40), *(chat(f"What is {n}?", "It is.") for n in range(24))])
    ended = run_runner(sft, "check")
    assert ended.status == 0, ended.output
    assert (ended.outcome.dataset["rows_used"], ended.outcome.dataset["rows_cut"]) == (24, 0)
    assert ended.outcome.dataset["rows_dropped"] == {"it is longer than training_max_seq_len=128": 1}
    assert "warning: not trained on: 1 row: it is longer than training_max_seq_len=128 (line 1)" in ended.output
    sft["max_dropped"] = 0.01
    failure = run_runner(sft, "check").outcome.failure
    assert failure is not None
    assert (failure.failure_class, failure.cause) == ("user", "too_many_rows_dropped")


def test_prompts_are_trained_where_messages_are_unmasked(run_runner: RunRunner, sft: Spec, dataset: Path) -> None:
    rows = [chat(f"What is {n}?", "It is.") for n in range(24)]
    for row in rows:
        row["messages"].insert(0, {"role": "system", "content": "Be kind."})
    write_rows(dataset, rows)
    masked = run_runner(sft, "check").outcome.dataset
    sft["parameters"]["unmask_messages"] = True
    sft["show_samples"] = 1
    ended = run_runner(sft, "check")
    assert ended.outcome.dataset["loss_on"] == "messages", ended.output
    assert ended.outcome.dataset["trained_tokens"] - masked["trained_tokens"] == sum(
        len(f"What is {n}?") for n in range(24)
    ), "the text of the prompts, a token a byte, and nothing else"
    assert "% of the tokens are trained, those of all messages but the system's" in ended.output
    assert "| <|im_start|>user\n| ⟦What is 0?⟧<|im_end|>\n| <|im_start|>assistant\n| ⟦It is.<|im_end|>⟧" in ended.output


def test_checkpoints_are_kept_and_the_last_of_them_is_published(
    run_runner: RunRunner, sft: Spec, tmp_path: Path
) -> None:
    sft["parameters"] |= {"save_samples": 16, "accelerate_full_state_at_epoch": True}
    sft["parameters"]["data_output_dir"] = str(tmp_path / "tokenised")
    sft["keep"] = "all"
    ended = run_runner(sft)
    assert ended.status == 0, ended.output
    checkpoints = tmp_path / "work" / "1" / "checkpoints"
    saved = sorted(path.name for path in (checkpoints / "hf_format").iterdir())
    assert saved == ["samples_16", "samples_24", "samples_32", "samples_48"]
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-6"], "the last, to go on from"
    published = tmp_path / "work" / "1" / "model" / "model.safetensors"
    assert published.read_bytes() == (checkpoints / "hf_format" / "samples_48" / "model.safetensors").read_bytes()
    (mine,) = (tmp_path / "tokenised").iterdir()
    assert (mine / "train.parquet").is_file()


def test_a_model_from_before_the_end_is_published_as_such_and_none_at_all_is_refused(
    run_runner: RunRunner, sft: Spec, tmp_path: Path
) -> None:
    sft["parameters"] |= {"checkpoint_at_epoch": False, "save_samples": 30}
    ended = run_runner(sft)
    assert ended.status == 0, ended.output
    assert "warning: the model is that after 32 of 48 samples" in ended.output
    sft["parameters"]["save_samples"] = 49
    failure = run_runner(sft).outcome.failure
    assert failure is not None
    assert (failure.failure_class, failure.cause) == ("user", "no_model_would_be_saved")
    assert "training_save_samples=49 is not reached in a training on 48 samples" in failure.message


@pytest.mark.timeout(400)
def test_two_nodes_train_the_model_that_one_process_trains(
    start_node: StartNode, run_runner: RunRunner, sft: Spec, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    alone = run_runner(sft).full
    together = {**sft, "nodes": 2, "processes_per_node": 1, "work_dir": str(tmp_path / "shared"), "keep": "checkpoints"}
    nodes = [start_node(together, rank) for rank in (0, 1)]
    (status, output, outcome), (other_status, other_output, other_outcome) = (node.end() for node in nodes)
    assert (status, other_status) == (0, 0), output + other_output
    assert other_outcome is None, "node 0 reports for all"
    assert outcome is not None
    assert "effective batch 8 = micro-batch 4 x accumulation 1 x 2 processes" in output
    assert losses(outcome) == pytest.approx(losses(alone), rel=1e-3)
    lineage = tmp_path / "shared" / "1"
    assert outcome.model_uri == (lineage / "model").as_uri()
    assert outcome.metrics["tokens"] == pytest.approx(alone.metrics["tokens"], rel=0.2), "of both, padding included"
    saved = sorted(path.name for path in (lineage / "checkpoints" / "hf_format").iterdir())
    assert saved == ["samples_24", "samples_48"], "saved once, and the samples of both are counted"
    assert alone.model_path is not None
    one = load_file(Path(alone.model_path) / "model.safetensors")
    both = load_file(lineage / "model" / "model.safetensors")
    assert all(both[name].sub(weight).abs().max() < 1e-3 for name, weight in one.items())
