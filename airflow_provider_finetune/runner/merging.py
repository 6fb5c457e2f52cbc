"""A LoRA adapter merged into its base model, on the CPU: the result is a plain model that needs no PEFT."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from airflow_provider_finetune.runner.failures import UserError

_SHARD = "5GB"
_BESIDE_THE_MODEL = 1.5
"""Bytes for each byte of weights, of which the merged ones take 1 and what they are computed in the rest: 1.1 were
measured for 527 MB in float32, 1.5 for 264 MB in bfloat16. Pages of files that are read do not count: they can be given
up at any time. Larger models take less, but for embeddings that are parted from their head."""
_LIBRARIES_BYTES = 1 << 30


def ensure_mergeable(base_model: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a base model whose files hold quantised weights only: an adapter is merged into the full-precision ones.

    A model that is only loaded in 4 or 8 bit for the training is none of these.

    :param base_model: directory of the base model; its weights need not be there yet.
    :param trust_remote_code: run code that the model brings along.
    :raises UserError: it is one.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base_model, trust_remote_code=trust_remote_code)
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is None:
        return
    name = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation.quant_method
    raise UserError(
        "base_model_quantised",
        f"The weights of {base_model} are stored quantised ({name}), and an adapter cannot be merged into them",
        "Leave output_kind out and publish the adapter, or name the full-precision form of the model in "
        "training_base_model; training_lora_load_in_4bit=True loads it in 4 bit",
    )


def memory_needed(weights: int) -> int:
    """Return the memory in bytes that merging and its proof need, the libraries' own included.

    :param weights: size of the base model's weights in bytes.
    """
    return int(weights * _BESIDE_THE_MODEL) + _LIBRARIES_BYTES


def merge(adapter: Path, base_model: str, target: Path, *, trust_remote_code: bool = False) -> None:
    """Merge an adapter into the base model's own weights, in their own dtype, and save the whole model.

    :param adapter: a LoRA adapter with its tokenizer.
    :param base_model: directory of the base model.
    :param target: a new directory.
    :param trust_remote_code: run code that the model brings along.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # What the training has left is large and refers to itself.
    gc.collect()
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto", trust_remote_code=trust_remote_code)
    _part_head_from_embeddings(base, adapter)
    model = PeftModel.from_pretrained(base, str(adapter), torch_device="cpu").merge_and_unload(safe_merge=True)
    model.save_pretrained(target, max_shard_size=_SHARD)
    AutoTokenizer.from_pretrained(str(adapter), trust_remote_code=trust_remote_code).save_pretrained(target)


def _part_head_from_embeddings(base: Any, adapter: Path) -> None:
    """Give the head weights of its own where they are the embeddings' and the adapter changes one of the two.

    Merged into one tensor the change would reach the other as well, which it was not trained for.
    """
    import torch

    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    places = [f"{name}." for name, module in base.named_modules() if module is embeddings or module is head]
    if not any(tensor.startswith(tuple(places)) for tensor in _tensors(adapter)):
        return
    head.weight = torch.nn.Parameter(embeddings.weight.detach().clone())
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def _tensors(adapter: Path) -> list[str]:
    """Return the names of an adapter's tensors as modules of the base model."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names: list[str] = file.keys()
    return [name.removeprefix("base_model.model.") for name in names]
