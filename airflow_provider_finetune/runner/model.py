"""The base model before training: small files first and weights last."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.uris import hub_name
from airflow_provider_finetune.runner import hub, oci, transfer
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.hub import Repository
from airflow_provider_finetune.runner.storage import local_path, scheme

Say = Callable[[str], None]

_ARGUMENT = "training_base_model"


@dataclass(frozen=True)
class BaseModel:
    """A base model that has been found.

    * ``name``: for people
    * ``path``: local directory with config and tokenizer, and with the weights where they are ``fetched``
    * ``reference``: what an adapter names as its base: id on the hub, path or URI
    * ``revision``: the commit on the hub; ``None`` elsewhere
    * ``weight_bytes``: size of the weights that will be loaded
    * ``fetched``: the weights lie in ``path`` already
    """

    name: str
    path: str
    reference: str
    revision: str | None
    weight_bytes: int
    fetched: bool

    @property
    def model_type(self) -> str:
        """The architecture as its configuration names it."""
        return str(json.loads((Path(self.path) / "config.json").read_text(encoding="utf-8")).get("model_type", ""))


def locate(base_model: str, *, scratch: Path, say: Say, trust_remote_code: bool = False) -> BaseModel:
    """Find the base model, and bring its small files here where they are elsewhere.

    Of the hub and of object stores only config, tokenizer and chat template are fetched; of an OCI image all of it, as
    its files lie in layers.

    :param base_model: path, ``file://``, id on the HuggingFace hub with or without ``hf://`` and perhaps with
        ``@revision``, ``oci://registry/repository:tag``, or a URI that fsspec reads. A directory that exists is taken
        before an id of that name.
    :param scratch: where to put what no cache holds.
    :param say: takes one line for people.
    :param trust_remote_code: the code that the model brings along will be run, so fetch it.
    :raises UserError: there is no such model, it is not whole, or it may not be read.
    :raises RunFailed: its place cannot be reached.
    """
    kind = scheme(base_model)
    if kind == "hf" or (
        kind is None and hub_name(base_model, "model") and not local_path(base_model, _ARGUMENT).exists()
    ):
        return _on_hub(hub.repository("model", base_model, _ARGUMENT), say, trust_remote_code)
    if kind == "oci":
        return _in_directory(oci.fetch_model(base_model, _ARGUMENT, scratch, say), base_model, base_model)
    if kind not in (None, "file"):
        return _in_store(base_model, scratch / "base-model", say, trust_remote_code)
    path = local_path(base_model, _ARGUMENT)
    if not path.is_dir():
        raise UserError(
            "model_missing",
            f"{_ARGUMENT}={base_model!r}: there is no directory {path}",
            "Check the path, or name a model on the HuggingFace hub as organisation/name or hf://organisation/name",
        )
    return _in_directory(path, str(path), str(path))


def fetch_weights(base: BaseModel, say: Say) -> BaseModel:
    """Bring the weights here, and say on the way how much has come.

    :param base: what :func:`locate` returned.
    :param say: takes one line for people.
    :return: the model with its weights in ``path``.
    :raises UserError: the weights are no longer there, or may not be read.
    :raises RunFailed: their place cannot be reached, or breaks off.
    """
    if base.fetched:
        return base
    directory = Path(base.path)
    if base.revision is not None:
        repository = Repository("model", base.reference, base.revision, _ARGUMENT)
        wanted = _weights(directory, hub.sizes(repository), base.name)
        say(f"fetching {transfer.size(base.weight_bytes)} of weights of {base.name}")
        with transfer.said(say, f"weights of {base.name}", hub.blobs(directory), base.weight_bytes):
            hub.download(repository, wanted)
    else:
        from airflow_provider_finetune.runner.storage import fetch, sizes

        wanted = _weights(directory, sizes(base.reference, _ARGUMENT, what="model"), base.name)
        fetch(base.reference, _ARGUMENT, directory, say, what="model", wanted=wanted.__contains__)
    _weights(directory, _sizes_in(directory), base.name)
    return replace(base, fetched=True)


def load_tokenizer(base: BaseModel, *, chats: bool = True, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer and make sure that what it makes can be trained on.

    :param base: its small files are enough.
    :param chats: it must render chats.
    :param trust_remote_code: run code that the model brings along.
    :raises UserError: no tokenizer, no chat template, no token to pad with, or an architecture that is not known.
    """
    from transformers import AutoTokenizer

    _ensure_architecture_known(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_loadable(base, "tokenizer", error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "tokenizer_not_fast",
            f"The tokenizer of {base.name} has no fast form, which tells which characters a token covers",
            "Save it with tokenizer.json beside the model",
        )
    if chats and not tokenizer.chat_template:
        raise UserError(
            "model_without_chat_template",
            f"The tokenizer of {base.name} has no chat template, so chat rows cannot be rendered",
            "Take the instruct form of the model, or put a chat_template.jinja into its directory",
        )
    if tokenizer.eos_token is None and tokenizer.pad_token is None:
        # With one of them TRL 1.16 pads; without both its trainer ends in a ValueError before the first step.
        raise UserError(
            "tokenizer_without_end",
            f"The tokenizer of {base.name} names no end-of-sequence token and no padding token, so its model could "
            "neither be trained in batches nor learn where an answer ends",
            "Set eos_token in its tokenizer_config.json to the token that ends a turn in its chat template",
        )
    return tokenizer


def ensure_instructlab_takes(tokenizer: Any, base: BaseModel) -> None:
    """Refuse a tokenizer that instructlab-training refuses once its processes have started.

    :param tokenizer: of the base model.
    :param base: named in the message.
    :raises UserError: it has no chat template or no token that ends a text, also where the data needs none.
    """
    lacks = {"chat template": tokenizer.chat_template, "token that ends a text": tokenizer.eos_token}
    for what, there in lacks.items():
        if not there:
            raise UserError(
                "tokenizer_not_taken",
                f"The tokenizer of {base.name} has no {what}, and SFT on a GPU wants one whatever the data is",
                "Take the instruct form of the model, add it to the files of the tokenizer, or train with OSFT or LoRA",
            )


def ensure_fits(base: BaseModel, adapter: Any, longest: int, *, trust_remote_code: bool = False) -> Any:
    """Make sure that the longest row has its positions in the base model, and an adapter its modules.

    :param base: its small files are enough.
    :param adapter: PEFT's configuration; ``None`` where all weights are trained.
    :param longest: tokens of the longest row.
    :param trust_remote_code: run code that the model brings along.
    :return: the model that is trained, with its adapter, on torch's meta device.
    :raises UserError: the one or the other does not fit.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig

    try:
        architecture = AutoConfig.from_pretrained(base.path, trust_remote_code=trust_remote_code)
        empty = _without_weights(architecture, trust_remote_code)
    except Exception as error:
        raise _not_loadable(base, "architecture", error) from error
    positions = getattr(architecture, "max_position_embeddings", None)
    if positions and longest > positions:
        raise UserError(
            "rows_longer_than_model",
            f"The longest row has {longest} tokens, and {base.name} reads {positions} at most",
            f"Set training_max_seq_len={positions} or less, or take a model with a longer context",
        )
    if adapter is None:
        return empty
    try:
        with torch.device("meta"):
            return get_peft_model(empty, adapter)
    except Exception as error:
        raise UserError(
            "adapter_does_not_fit",
            f"{base.name} cannot get the adapter that was asked for: {error}",
            "Name modules that the model has in training_lora_target_modules, or leave it out for all linear layers",
        ) from error


def _on_hub(asked: Repository, say: Say, trust_remote_code: bool) -> BaseModel:
    if hub.is_offline():
        directory = hub.cached(asked)
        found = asked.at(directory.name)
        say(f"HF_HUB_OFFLINE is set: {found.named} is taken from the cache, whatever the hub has now")
        return replace(_in_directory(directory, found.named, found.id), revision=found.revision)
    answer = hub.ask(asked)
    found = asked.at(answer.sha)
    there = {file.rfilename: file.size or 0 for file in answer.siblings}
    _ensure_config(there, found.named)
    directory = hub.download(found, [name for name in there if _is_small(name, trust_remote_code)])
    hub.remember(asked, directory)
    weights = _weights(directory, there, found.named)
    here = _sizes_in(directory)
    return BaseModel(
        name=found.named,
        path=str(directory),
        reference=found.id,
        revision=found.revision,
        weight_bytes=sum(weights.values()),
        fetched=all(here.get(name) == size for name, size in weights.items()),
    )


def _in_store(uri: str, directory: Path, say: Say, trust_remote_code: bool) -> BaseModel:
    from airflow_provider_finetune.runner.storage import fetch, shown, sizes

    if re.search("[?#]", uri):
        # What follows them may be a signature, which no adapter may name as its base model.
        raise UserError(
            "unsupported_uri",
            f"{_ARGUMENT}={shown(uri)!r}: no '?' and no '#' may follow in the place of a model",
            "Copy the model to a place without them in its name; credentials belong into secrets",
        )
    there = sizes(uri, _ARGUMENT, what="model")
    _ensure_config(there, shown(uri))
    fetch(uri, _ARGUMENT, directory, say, what="model", wanted=lambda name: _is_small(name, trust_remote_code))
    weights = _weights(directory, there, shown(uri))
    return BaseModel(shown(uri), str(directory), shown(uri), None, sum(weights.values()), fetched=False)


def _in_directory(path: Path, name: str, reference: str) -> BaseModel:
    there = _sizes_in(path)
    _ensure_config(there, name)
    weights = _weights(path, there, name)
    small = [file for file in there if _is_small(file, trust_remote_code=False)]
    _ensure_readable([path / file for file in (*weights, *small)], name)
    for file, size in weights.items():
        if size < 1_000 and (path / file).read_bytes().startswith(b"version https://git-lfs"):
            raise _incomplete(name, f"holds a pointer of Git LFS in place of the weights in {file}: run git lfs pull")
    return BaseModel(name, str(path), reference, None, sum(weights.values()), fetched=True)


def _ensure_readable(files: Iterable[Path], model: str) -> None:
    for file in files:
        try:
            file.open("rb").close()
        except PermissionError as error:
            raise UserError(
                "model_unreadable",
                f"{_ARGUMENT}: {file.name} of {model} cannot be read by user {os.geteuid()}, who runs the training",
                f"Let that user read it, e.g. chmod -R a+rX {file.parent}",
            ) from error


def _sizes_in(directory: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_size for entry in directory.iterdir() if entry.is_file()}


_SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Config, index of the weights, generation config, chat templates and the vocabularies of all kinds of tokenizers."""


def _is_small(name: str, trust_remote_code: bool) -> bool:
    if "/" in name:
        return name.startswith("additional_chat_templates/")
    return name.endswith(_SMALL) or (trust_remote_code and name.endswith(".py"))


def _ensure_config(there: Collection[str], model: str) -> None:
    if "config.json" in there:
        return
    if "adapter_config.json" in there:
        cure = "Merge the adapter into its base model and name the merged model"
    else:
        cure = "Name the directory or repository that transformers' save_pretrained has written"
    raise UserError("model_incomplete", f"{_ARGUMENT}: {model} has no config.json", cure)


def _weights(directory: Path, there: Mapping[str, int | None], model: str) -> dict[str, int]:
    """Return names and sizes of the weight files that transformers will load, which prefers safetensors.

    :param directory: has the index where the weights are in several files.
    :param there: names and sizes of the files where the weights are.
    :param model: its name for messages.
    :raises UserError: there are none, or not all of them, or one is empty.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = f"{whole}.index.json"
        if whole in there or index in there:
            names = [whole] if whole in there else _shards(directory / index, model)
            break
    else:
        raise _incomplete(model, "has no weights: neither model.safetensors nor pytorch_model.bin, whole or in parts")
    if missing := [name for name in names if not there.get(name)]:
        raise _incomplete(model, f"lacks weights, or they are empty: {', '.join(missing[:5])}")
    return {name: there[name] or 0 for name in names}


def _shards(index: Path, model: str) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _incomplete(model, f"has an index of its weights that cannot be read, {index.name}") from error


def _incomplete(model: str, why: str) -> UserError:
    return UserError(
        "model_incomplete",
        f"{_ARGUMENT}: {model} {why}",
        "Copy or save it again whole, with the files that transformers' save_pretrained writes",
    )


def _ensure_architecture_known(base: BaseModel) -> None:
    """Before anything is built from it: the tokenizer of an unknown architecture may load, and mean something else."""
    from importlib.metadata import version

    from transformers import CONFIG_MAPPING

    try:
        config = json.loads((Path(base.path) / "config.json").read_text(encoding="utf-8"))
        kind, brings_code = config.get("model_type"), "AutoConfig" in config.get("auto_map", {})
    except (ValueError, AttributeError) as error:
        raise _incomplete(base.name, f"has a config.json that cannot be read: {error}") from error
    if kind not in CONFIG_MAPPING and not brings_code:
        raise UserError(
            "architecture_unknown",
            f"{base.name} is of the architecture model_type={kind!r}, which transformers {version('transformers')} "
            "does not know",
            "Take an image with a newer transformers, or another model",
        )


def _not_loadable(base: BaseModel, what: str, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            "model_brings_code",
            f"The {what} of {base.name} is code that the model brings along, which is not run unasked",
            "Read that code, and set extra_args={'trust_remote_code': True} where you trust it",
        )
    reason = text.splitlines()[0] if text else type(error).__name__
    if what == "tokenizer":
        cause, cure = "model_without_tokenizer", "It needs tokenizer.json and tokenizer_config.json beside config.json"
    else:
        cause, cure = "architecture_not_loadable", "Name a model that transformers loads with AutoModelForCausalLM"
    return UserError(cause, f"The {what} of {base.name} cannot be loaded: {reason}", cure)


def _without_weights(architecture: Any, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture, trust_remote_code=trust_remote_code)
