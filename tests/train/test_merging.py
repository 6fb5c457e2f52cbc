"""A merged model is a plain model that answers as its base model with the adapter beside it.

* plain LoRA, rsLoRA and DoRA, in float32, float16 and bfloat16; embeddings and head as one tensor or two
* what is published of it: dtype, config, tokenizer and template of the base model, and no trace of where it was made
* the proof fails for a merge that has gone wrong, and says where rounding has lost what was learned
* refused before: a base model that is stored quantised, too little memory
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_finetune.runner import merging, proof
from airflow_provider_finetune.runner.failures import RunFailed
from tests.train.conftest import chat, write_rows
from tests.train.tiny_model import CHATML, save_tiny_model

ROWS = [[0, 40, 70, 9, 33, 1], [0, 12, 99, 31, 200, 7, 8, 1]]


def save_adapter(base: Path, directory: Path, *, strength: float = 0.1, **options: Any) -> Path:
    """Save an adapter that has learned something, as training leaves it."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        LoraConfig(**{"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight.data, std=strength)
    model.save_pretrained(str(directory))
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


@pytest.mark.parametrize(
    ("dtype", "tied", "options"),
    [
        ("float32", False, {}),
        ("float32", True, {"use_rslora": True}),
        ("float32", False, {"use_dora": True}),
        ("bfloat16", True, {}),
        ("bfloat16", False, {"use_rslora": True}),
        ("bfloat16", True, {"use_dora": True}),
        ("float16", False, {}),
    ],
)
def test_a_merged_model_answers_as_base_model_and_adapter(
    tmp_path: Path, dtype: str, tied: bool, options: dict[str, Any]
) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=dtype, tied=tied)
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    merging.merge(adapter, str(base), tmp_path / "merged")
    likeness = proof.prove_merged(tmp_path / "merged", adapter, str(base), CHATML, ROWS)
    assert likeness.dtype == dtype
    assert likeness.difference < {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}[dtype]
    assert likeness.effect > 0.1
    assert not likeness.loses_much
    kept, stored = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert {name: (weight.shape, weight.dtype) for name, weight in stored.items()} == {
        name: (weight.shape, weight.dtype) for name, weight in kept.items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_of_the_head_or_the_embeddings_alone_parts_the_two(tmp_path: Path, options: dict[str, Any]) -> None:
    base = save_tiny_model(tmp_path / "base", tied=True)
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    merging.merge(adapter, str(base), tmp_path / "merged")
    assert proof.prove_merged(tmp_path / "merged", adapter, str(base), CHATML, ROWS).difference < 1e-5
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False


def test_nothing_but_the_weights_is_another_than_the_base_models(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", dtype="bfloat16")
    merging.merge(save_adapter(base, tmp_path / "adapter"), str(base), tmp_path / "merged")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "merged" / name).read_text()) == json.loads((base / name).read_text()), name
    files = {entry.name for entry in (tmp_path / "merged").iterdir()}
    assert files == {entry.name for entry in base.iterdir()}, "and none of the adapter's"
    assert not [name for name in files if str(tmp_path).encode() in (tmp_path / "merged" / name).read_bytes()]


def _not_merged_everywhere(merged: Path, base: Path) -> None:
    weights, kept = load_file(merged / "model.safetensors"), load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file({**weights, name: kept[name]}, merged / "model.safetensors", {"format": "pt"})


def _merged_twice(merged: Path, base: Path) -> None:
    weights, kept = load_file(merged / "model.safetensors"), load_file(base / "model.safetensors")
    twice = {name: 2 * weight - kept[name] for name, weight in weights.items()}
    save_file(twice, merged / "model.safetensors", {"format": "pt"})


def _not_merged_at_all(merged: Path, base: Path) -> None:
    (merged / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())


def _with_other_embeddings(merged: Path, base: Path) -> None:
    weights = load_file(merged / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].roll(1, 0)
    save_file(weights, merged / "model.safetensors", {"format": "pt"})


def _turned_differently(merged: Path, base: Path) -> None:
    config = json.loads((merged / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 10.0
    (merged / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "damage", [_not_merged_everywhere, _merged_twice, _not_merged_at_all, _with_other_embeddings, _turned_differently]
)
def test_a_merge_that_has_gone_wrong_is_not_proven(
    tmp_path: Path, damage: Callable[[Path, Path], None], dtype: str
) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=dtype)
    adapter = save_adapter(base, tmp_path / "adapter", strength=0.5)
    merging.merge(adapter, str(base), tmp_path / "merged")
    damage(tmp_path / "merged", base)
    with pytest.raises(RunFailed, match="its answers are not those of the base model with the adapter") as refused:
        proof.prove_merged(tmp_path / "merged", adapter, str(base), CHATML, ROWS)
    assert refused.value.failure.cause == "model_not_loadable"


def test_a_broken_weight_or_another_template_is_not_proven_either(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    merged = tmp_path / "merged"
    merging.merge(adapter, str(base), merged)
    (merged / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(RunFailed, match="its chat template is not"):
        proof.prove_merged(merged, adapter, str(base), CHATML, ROWS)
    weights = load_file(merged / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunFailed, match="not finite"):
        proof.prove_merged(merged, adapter, str(base), CHATML, ROWS)


def test_a_change_that_bfloat16_cannot_add_is_said_to_be_lost(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", dtype="bfloat16")
    adapter = save_adapter(base, tmp_path / "adapter", strength=1e-5)
    merging.merge(adapter, str(base), tmp_path / "merged")
    assert proof.prove_merged(tmp_path / "merged", adapter, str(base), CHATML, ROWS).loses_much


def test_an_adapter_that_has_learned_nothing_is_the_users_to_mend(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", strength=0)
    merging.merge(adapter, str(base), tmp_path / "merged")
    with pytest.raises(RunFailed, match="the adapter changes no answer") as refused:
        proof.prove_merged(tmp_path / "merged", adapter, str(base), CHATML, ROWS)
    assert refused.value.failure.failure_class == "user"


def test_a_base_model_that_is_stored_quantised_is_refused(base: Path) -> None:
    merging.ensure_mergeable(str(base))
    config = json.loads((base / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    with pytest.raises(RunFailed, match=r"stored quantised \(bitsandbytes\)") as refused:
        merging.ensure_mergeable(str(base))
    assert refused.value.failure.failure_class == "user"


def test_rows_that_the_library_reads_itself_are_compared_as_text(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [chat("What?", "That. " * 100)] * 9)
    compared = proof.rows_to_compare(rows, base)
    assert [len(row) for row in compared] == [128] * 4
