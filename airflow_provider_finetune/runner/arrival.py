"""The files of a model as a backend has left them, brought together as somebody else is to find them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from airflow_provider_finetune.runner.storage.models import paths

_NO_PART_OF_A_MODEL = frozenset({"training_args.bin", "training_metrics.jsonl"})
_NAMES = {"F16": "float16", "BF16": "bfloat16"}
"""What safetensors calls a dtype, and torch."""
_NARROW = frozenset(_NAMES.values())


def collect(source: Path, target: Path) -> None:
    """Bring the model's files together without what the trainer keeps beside them, and without a second copy.

    :param source: what the backend has left.
    :param target: a new directory.
    """
    target.mkdir()
    for path in paths(source):
        if path.is_file() and path.name not in _NO_PART_OF_A_MODEL:
            place = target / path.relative_to(source)
            place.parent.mkdir(exist_ok=True)
            try:
                os.link(path, place)
            except OSError:
                shutil.copy2(path, place)


def name_base_model(adapter: Path, path: str, reference: str, revision: str | None) -> None:
    """Let an adapter name its base model as the user did, and not the directory that it was trained from.

    :param adapter: directory of the adapter; what it shares with other directories by hard links stays there as it is.
    :param path: directory of the base model while it was trained.
    :param reference: id, path or URI of the base model.
    :param revision: its commit on a hub.
    """
    config = adapter / "adapter_config.json"
    named = {"base_model_name_or_path": reference, "revision": revision}
    _replace(config, json.dumps(_read(config) | named, indent=2))
    card = adapter / "README.md"
    if card.is_file():
        _replace(card, card.read_text(encoding="utf-8").replace(path, reference))


def complete(model: Path, base_model: str, trust_remote_code: bool = False) -> None:
    """Give a model of all weights what somebody finds who loads its base model, and no more.

    mini-trainer saves buffers as if they were weights, which loaders refuse, and turns the cache off for good, without
    which each answer takes many times as long. Neither it nor instructlab-training saves how a model generates.

    :param model: directory of the model; what it shares with other directories by hard links stays there as it is.
    :param base_model: directory of the base model.
    :param trust_remote_code: run code that the base model brings along.
    """
    _drop(model, _buffers(base_model, trust_remote_code))
    config, original = _read(model / "config.json"), _read(Path(base_model) / "config.json")
    if config.get("use_cache") is False and original.get("use_cache", True):
        _replace(model / "config.json", json.dumps(config | {"use_cache": True}, indent=2))
    generation = "generation_config.json"
    if not (model / generation).exists() and (Path(base_model) / generation).is_file():
        shutil.copy2(Path(base_model) / generation, model / generation)


def _buffers(base_model: str, trust_remote_code: bool) -> frozenset[str]:
    """Return the names of the buffers that a model of this architecture is saved without."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base_model, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        architecture = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return frozenset(name for name, _ in architecture.named_buffers()) - architecture.state_dict().keys()


def _drop(model: Path, names: frozenset[str]) -> None:
    """Save without these tensors the files that have them; one file of them at a time is in memory."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    dropped: dict[str, int] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            there = set(stored.keys())
            if not names & there:
                continue
            dropped |= {name: stored.get_tensor(name).nbytes for name in names & there}
            tensors = {name: stored.get_tensor(name) for name in there - names}
            metadata = stored.metadata() or {"format": "pt"}
        arriving = file.with_name(f".{file.name}")
        save_file(tensors, arriving, metadata)
        arriving.replace(file)
    index = model / "model.safetensors.index.json"
    if dropped and index.is_file():
        document = _read(index)
        document["metadata"]["total_size"] -= sum(dropped.values())
        for name in dropped:
            document["weight_map"].pop(name, None)
        _replace(index, json.dumps(document, indent=2))


def narrow(model: Path, base_model: str) -> str | None:
    """Give weights in float32 the dtypes that they have in the base model; one file of them at a time is in memory.

    A CPU trains in float32, and a model whose weights take twice the room of its base model's answers no better.

    :param model: directory of the model; what it shares with other directories by hard links stays there as it is.
    :param base_model: directory of the base model.
    :return: the dtype that the model has got, ``None`` where it has stayed as it was.
    """
    wanted, otherwise = _dtypes(base_model)
    saved, narrowed = 0, set()
    for file in sorted(model.glob("*.safetensors")):
        bytes_less, dtypes = _narrow(file, wanted, otherwise)
        saved += bytes_less
        narrowed |= dtypes
    if not narrowed:
        return None
    dtype = otherwise if otherwise in narrowed else sorted(narrowed)[0]
    config, index = model / "config.json", model / "model.safetensors.index.json"
    _replace(config, json.dumps(_read(config) | {"dtype": dtype}, indent=2))
    if index.is_file():
        document = _read(index)
        document["metadata"]["total_size"] -= saved
        _replace(index, json.dumps(document, indent=2))
    return dtype


def _dtypes(base_model: str) -> tuple[dict[str, str], str | None]:
    """Return the dtypes of the base model's tensors as far as they lie there as safetensors, and that of its config."""
    from safetensors import safe_open
    from transformers import PreTrainedConfig

    found = {}
    for file in Path(base_model).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            found.update({name: tensors.get_slice(name).get_dtype() for name in names})
    config, _ = PreTrainedConfig.get_config_dict(base_model)
    # Before transformers 4.56 it had the other name.
    named = config.get("dtype") or config.get("torch_dtype")
    return {name: _NAMES.get(dtype, dtype) for name, dtype in found.items()}, named


def _narrow(file: Path, wanted: dict[str, str], otherwise: str | None) -> tuple[int, set[str]]:
    """Narrow the tensors of one file; return the bytes that it has lost, and the dtypes that were given."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file, "pt") as stored:
        names = stored.keys()
        dtypes = {
            name: dtype
            for name in names
            if stored.get_slice(name).get_dtype() == "F32" and (dtype := wanted.get(name, otherwise)) in _NARROW
        }
        if not dtypes:
            return 0, set()
        tensors = {}
        for name in names:
            tensor = stored.get_tensor(name)
            tensors[name] = tensor.to(getattr(torch, dtypes[name])) if name in dtypes else tensor
        metadata = stored.metadata()
    arriving = file.with_name(f".{file.name}")
    save_file(tensors, arriving, metadata)
    arriving.replace(file)
    return sum(2 * tensors[name].numel() for name in dtypes), set(dtypes.values())


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def _replace(file: Path, text: str) -> None:
    """Write a new file: the old one may be that of a checkpoint as well."""
    arriving = file.with_name(f".{file.name}")
    arriving.write_text(text, encoding="utf-8")
    arriving.replace(file)
