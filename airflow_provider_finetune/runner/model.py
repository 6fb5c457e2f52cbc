"""The base model before training, and the proof of the model that has come out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.storage import local_path, scheme

_HUB_ID = re.compile(r"^\w[\w.-]*/[\w.-]+$")


def locate(base_model: str) -> str:
    """Return the directory or the HuggingFace id that ``base_model`` names.

    :param base_model: path, ``file://`` or ``hf://`` URI, or id.
    :raises UserError: no such directory, or a directory without a config.
    """
    if scheme(base_model) == "hf":
        return base_model[len("hf://") :]
    path = local_path(base_model, "training_base_model")
    if not path.exists() and _HUB_ID.match(base_model):
        return base_model
    if not path.is_dir():
        raise UserError(
            "model_missing",
            f"training_base_model={base_model!r}: there is no directory {path}",
            "Check the path, or name a model on the HuggingFace hub as organisation/name or hf://name",
        )
    if not (path / "config.json").is_file():
        raise UserError(
            "model_incomplete",
            f"training_base_model={base_model!r}: {path} has no config.json",
            "Name the directory that transformers' save_pretrained has written",
        )
    return str(path)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer and make sure that it can render chats.

    :param model: what :func:`locate` returned.
    :param trust_remote_code: run code that the model brings along.
    :raises UserError: no tokenizer, no chat template, no such model, no right to read it.
    :raises RunFailed: the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _reading_failed(model, "tokenizer", error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "tokenizer_not_fast",
            f"The tokenizer of {model} has no fast form, which tells which characters a token covers",
            "Save it with tokenizer.json beside the model",
        )
    if not tokenizer.chat_template:
        raise UserError(
            "model_without_chat_template",
            f"The tokenizer of {model} has no chat template, so chat rows cannot be rendered",
            "Take the instruct form of the model, or put a chat_template.jinja into its directory",
        )
    return tokenizer


def ensure_fits(base_model: str, adapter: Any, longest: int, *, trust_remote_code: bool = False) -> None:
    """Make sure that the longest row has its positions in the base model, and an adapter its modules.

    :param base_model: what :func:`locate` returned.
    :param adapter: PEFT's configuration; ``None`` where all weights are trained.
    :param longest: tokens of the longest row.
    :param trust_remote_code: run code that the model brings along.
    :raises UserError: the one or the other does not fit.
    :raises RunFailed: the hub cannot be reached.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig

    try:
        architecture = AutoConfig.from_pretrained(base_model, trust_remote_code=trust_remote_code)
        base = _without_weights(architecture, trust_remote_code)
    except Exception as error:
        raise _reading_failed(base_model, "architecture", error) from error
    positions = getattr(architecture, "max_position_embeddings", None)
    if positions and longest > positions:
        raise UserError(
            "rows_longer_than_model",
            f"The longest row has {longest} tokens, and {base_model} reads {positions} at most",
            f"Set training_max_seq_len={positions} or less, or take a model with a longer context",
        )
    if adapter is None:
        return
    try:
        with torch.device("meta"):
            get_peft_model(base, adapter)
    except Exception as error:
        raise UserError(
            "adapter_does_not_fit",
            f"{base_model} cannot get the adapter that was asked for: {error}",
            "Name modules that the model has in training_lora_target_modules, or leave it out for all linear layers",
        ) from error


def _without_weights(architecture: Any, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture, trust_remote_code=trust_remote_code)


def _reading_failed(model: str, what: str, error: Exception) -> RunFailed:
    text = str(error)
    names = {type(link).__name__ for link in (error, error.__cause__, error.__context__) if link}
    if "trust_remote_code" in text:
        return UserError(
            "model_brings_code",
            f"The {what} of {model} is code that the model brings along, which is not run unasked",
            "Read that code, and set extra_args={'trust_remote_code': True} where you trust it",
        )
    refused = "GatedRepoError" in names or any(word in text for word in ("gated repo", "401", "403"))
    if refused and not Path(model).is_dir():
        return UserError(
            "model_gated",
            f"The HuggingFace hub refuses {model}: its {what} needs rights that were not given",
            "Accept the model's licence there and hand over a token: secrets={'HF_TOKEN': 'conn:<connection id>'}",
        )
    if not Path(model).is_dir() and ("RepositoryNotFoundError" in names or "not a valid model identifier" in text):
        return UserError(
            "model_missing",
            f"The HuggingFace hub has no model {model}, or hides it from this account",
            "Check the name; a private model needs secrets={'HF_TOKEN': 'conn:<connection id>'}",
        )
    if not Path(model).is_dir() and ("connect" in text.lower() or "offline" in text.lower()):
        return RunFailed(
            "infrastructure",
            "hub_unreachable",
            f"The HuggingFace hub cannot be reached for {model}",
            "Check the network of this machine, or name a local directory in training_base_model",
        )
    return UserError(
        "model_without_tokenizer",
        f"The {what} of {model} cannot be loaded: {text.splitlines()[0] if text else type(error).__name__}",
        "The directory needs the tokenizer's files (tokenizer.json, tokenizer_config.json) beside config.json",
    )


def prove_adapter(directory: Path, base_model: str, chat_template: str, *, trust_remote_code: bool = False) -> None:
    """Make sure that a LoRA adapter can be loaded onto its base model by somebody else.

    The adapter is held against the base model's architecture, built without memory for weights, so the proof of a
    large model is as quick as that of a small one.

    :param directory: the adapter as the backend wrote it.
    :param base_model: what :func:`locate` returned.
    :param chat_template: the template that was trained with.
    :param trust_remote_code: run code that the model brings along.
    :raises RunFailed: a file is missing, a weight is not finite, a tensor has no place in the base model.
    """
    import torch
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = PeftConfig.from_pretrained(str(directory))
        weights = load_file(directory / "adapter_model.safetensors")
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
        architecture = AutoConfig.from_pretrained(base_model, trust_remote_code=trust_remote_code)
        base = _without_weights(architecture, trust_remote_code)
        with torch.device("meta"):
            assert isinstance(config, LoraConfig)
            expected = get_peft_model_state_dict(get_peft_model(base, config))
    except Exception as error:
        raise _broken(directory, f"it cannot be loaded: {error}") from error
    if {name: tensor.shape for name, tensor in weights.items()} != {n: t.shape for n, t in expected.items()}:
        raise _broken(directory, "its tensors are not those of a LoRA adapter for the base model")
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise _broken(directory, "it holds weights that are not finite")
    if tokenizer.chat_template != chat_template:
        raise _broken(directory, "its chat template is not the one that was trained with")


def prove_full(directory: Path, base_model: str, chat_template: str, *, trust_remote_code: bool = False) -> None:
    """Make sure that a model of all weights can be loaded by somebody else, and that it has learned something.

    :param directory: the model as the backend wrote it.
    :param base_model: what :func:`locate` returned.
    :param chat_template: the template that was trained with.
    :param trust_remote_code: run code that the model brings along.
    :raises RunFailed: it cannot be loaded, is not of the base model's architecture and vocabulary, or a weight is not
        finite.
    :raises UserError: every weight is that of the base model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not list(directory.glob("*.safetensors")):
        raise _broken(directory, "it has no weights as safetensors")
    try:
        trained, loading = AutoModelForCausalLM.from_pretrained(
            str(directory), dtype="auto", trust_remote_code=trust_remote_code, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _broken(directory, f"it cannot be loaded: {error}") from error
    if any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
        raise _broken(directory, f"its weights are not those of its architecture: {loading}")
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto", trust_remote_code=trust_remote_code)
    weights, expected = dict(trained.named_parameters()), dict(base.named_parameters())
    if {name: weight.shape for name, weight in weights.items()} != {n: w.shape for n, w in expected.items()}:
        raise _broken(directory, "its weights are not of the base model's architecture and vocabulary")
    if not all(torch.isfinite(weight).all() for weight in weights.values()):
        raise _broken(directory, "it holds weights that are not finite")
    original = AutoTokenizer.from_pretrained(base_model, trust_remote_code=trust_remote_code)
    if tokenizer.get_vocab() != original.get_vocab():
        raise _broken(directory, "its tokenizer has not the base model's vocabulary")
    if tokenizer.chat_template != chat_template:
        raise _broken(directory, "its chat template is not the one that was trained with")
    if all(torch.equal(weight, expected[name].to(weight.dtype)) for name, weight in weights.items()):
        raise UserError(
            "nothing_learned",
            f"The trained model in {directory} is the base model: no weight has changed. It was not published",
            "Raise training_learning_rate, or lower training_lr_warmup_steps: in the first step of a warm-up it is 0",
        )


def _broken(directory: Path, why: str) -> RunFailed:
    return RunFailed(
        "infrastructure",
        "model_not_loadable",
        f"The trained model in {directory} is not usable: {why}",
        "It was not published. The training log says what happened while it was saved",
    )
