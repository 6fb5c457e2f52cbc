"""The proof of the model that has come out: loaded as somebody else would load it, and held against its base model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.turns import ChatTemplate

_ROWS_COMPARED = 4
_TOKENS_READ = 128
_TOKENS_COMPARED = 32
"""Of each row that is compared; logits are as wide as the vocabulary."""

_TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
"""How far the logits of a merged model may be from those of base model and adapter, as a share of their spread, by the
dtype that the sum of the two is rounded to. Of random Llamas with 2 to 24 layers 1e-6, 0.001 and 0.01 were seen."""


@dataclass(frozen=True)
class Likeness:
    """How a merged model answers on rows of the training data; shares of the spread of the logits.

    * ``difference``: root mean square difference from the base model with the adapter beside it
    * ``effect``: that of the base model with the adapter from the base model without: what was learned
    * ``dtype``: of the merged weights
    """

    difference: float
    effect: float
    dtype: str

    @property
    def loses_much(self) -> bool:
        """Half of what was learned is smaller than what the merged weights can hold."""
        return self.difference > self.effect / 2


def prove_adapter(
    directory: Path, base_model: str, chat_template: ChatTemplate, *, trust_remote_code: bool = False
) -> None:
    """Make sure that a LoRA adapter can be loaded onto its base model by somebody else.

    The adapter is held against the base model's architecture, built without memory for weights, so the proof of a
    large model is as quick as that of a small one.

    :param directory: the adapter as the backend wrote it.
    :param base_model: directory of the base model.
    :param chat_template: the template that was trained with.
    :param trust_remote_code: run code that the model brings along.
    :raises RunFailed: a file is missing, a weight is not finite, a tensor has no place in the base model.
    """
    import torch
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    try:
        config = PeftConfig.from_pretrained(str(directory))
        weights = load_file(directory / "adapter_model.safetensors")
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
        base = _without_weights(base_model, trust_remote_code)
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


def prove_full(
    directory: Path, base_model: str, chat_template: ChatTemplate, *, trust_remote_code: bool = False
) -> None:
    """Make sure that a model of all weights can be loaded by somebody else, and that it has learned something.

    :param directory: the model as it is to be published.
    :param base_model: directory of the base model.
    :param chat_template: the template that was trained with.
    :param trust_remote_code: run code that the model brings along.
    :raises RunFailed: it cannot be loaded, is not of the base model's architecture and vocabulary, or a weight is not
        finite.
    :raises UserError: every weight is that of the base model.
    """
    import torch

    trained = _load_proven(directory, base_model, chat_template, trust_remote_code)
    base = dict(_load(base_model, trust_remote_code).named_parameters())
    if all(torch.equal(weight, base[name].to(weight.dtype)) for name, weight in trained.named_parameters()):
        raise _nothing_learned(directory, "no weight has changed")


def prove_merged(
    directory: Path,
    adapter: Path,
    base_model: str,
    chat_template: ChatTemplate,
    rows: Sequence[Sequence[int]],
    *,
    trust_remote_code: bool = False,
) -> Likeness:
    """Make sure that a merged model can be loaded by somebody else, and answers as its base model with the adapter.

    One model at a time is in memory.

    :param directory: the merged model.
    :param adapter: the adapter that was merged, proven.
    :param base_model: directory of the base model.
    :param chat_template: the template that was trained with.
    :param rows: token ids that both read, see :func:`rows_to_compare`.
    :param trust_remote_code: run code that the model brings along.
    :return: how alike they are.
    :raises RunFailed: as :func:`prove_full`; its answers are others.
    :raises UserError: the adapter changes no answer.
    """
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(_load(base_model, trust_remote_code), str(adapter), torch_device="cpu").eval()
    expected = _logits(adapted, rows)
    with adapted.disable_adapter():
        effect = _distance(_logits(adapted, rows), expected)
    del adapted
    if not effect:
        raise _nothing_learned(directory, "the adapter changes no answer of its base model")
    merged = _load_proven(directory, base_model, chat_template, trust_remote_code)
    likeness = Likeness(_distance(_logits(merged, rows), expected), effect, str(merged.dtype).removeprefix("torch."))
    # Not ">": what is compared with NaN is never true.
    if not likeness.difference <= (tolerance := _TOLERANCES[likeness.dtype]):
        raise _broken(
            directory,
            f"its answers are not those of the base model with the adapter: the logits differ by "
            f"{likeness.difference:.2%} of their spread, where {likeness.dtype} explains {tolerance:.1%} at most",
        )
    return likeness


def rows_to_compare(data: Path, tokenizer: Path) -> list[list[int]]:
    """Return the beginnings of some rows of the training data as token ids.

    :param data: the tokenised rows, or text where the library tokenises by itself.
    :param tokenizer: directory of the tokenizer.
    """
    if data.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(data) as file:
            batch = next(file.iter_batches(_ROWS_COMPARED, columns=["input_ids"]))
        return [row[:_TOKENS_READ] for row in batch["input_ids"].to_pylist()]
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(str(tokenizer))
    with data.open(encoding="utf-8") as lines:
        texts = [line for line, _ in zip(lines, range(_ROWS_COMPARED), strict=False)]
    return [encode(text)["input_ids"][:_TOKENS_READ] for text in texts]


def _load_proven(directory: Path, base_model: str, chat_template: ChatTemplate, trust_remote_code: bool) -> Any:
    """Load a whole model whose weights are finite and which has its base model's architecture, words and template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not list(directory.glob("*.safetensors")):
        raise _broken(directory, "it has no weights as safetensors")
    try:
        found, loading = AutoModelForCausalLM.from_pretrained(
            str(directory), dtype="auto", trust_remote_code=trust_remote_code, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _broken(directory, f"it cannot be loaded: {error}") from error
    if any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
        raise _broken(directory, f"its weights are not those of its architecture: {loading}")
    # Merging may part the embeddings from the head, which are one tensor in the base model.
    expected = _without_weights(base_model, trust_remote_code, tie_word_embeddings=found.config.tie_word_embeddings)
    if _shapes(found) != _shapes(expected):
        raise _broken(directory, "its weights are not of the base model's architecture and vocabulary")
    if not all(torch.isfinite(weight).all() for weight in found.parameters()):
        raise _broken(directory, "it holds weights that are not finite")
    original = AutoTokenizer.from_pretrained(base_model, trust_remote_code=trust_remote_code)
    if tokenizer.get_vocab() != original.get_vocab():
        raise _broken(directory, "its tokenizer has not the base model's vocabulary")
    if tokenizer.chat_template != chat_template:
        raise _broken(directory, "its chat template is not the one that was trained with")
    return found


def _load(model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype="auto", trust_remote_code=trust_remote_code)


def _without_weights(model: str, trust_remote_code: bool, **changes: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **changes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _shapes(model: Any) -> dict[str, Any]:
    return {name: weight.shape for name, weight in model.named_parameters()}


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """Return logits as softmax sees them: a constant that is added to all words says nothing."""
    import torch

    with torch.no_grad(), _widened(model):
        logits = [model(input_ids=torch.tensor([row])).logits[0, -_TOKENS_COMPARED:].float() for row in rows]
    joined = torch.cat(logits)
    return joined - joined.mean(dim=-1, keepdim=True)


@contextmanager
def _widened(model: Any) -> Iterator[None]:
    """Let a model compute in float32, where only one layer at a time has its weights as such.

    Computing in bfloat16 rounds more than merging does, and a model in float32 would take twice the memory. Of 22
    architectures of transformers, with experts and state spaces among them, the logits are those of float32 to the bit.
    """
    handles = []
    for module, weights in _layers(model):
        narrow = [weight.data for weight in weights]

        def widen(*_: Any, weights: list[Any] = weights) -> None:
            for weight in weights:
                weight.data = weight.data.float()

        def restore(*_: Any, weights: list[Any] = weights, narrow: list[Any] = narrow) -> None:
            for weight, data in zip(weights, narrow, strict=True):
                weight.data = data

        handles.append(module.register_forward_pre_hook(widen))
        handles.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(module: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Return each decoder layer with its weights, and what else has weights of its own, such as the embeddings."""
    import torch

    if own := list(module.parameters(recurse=False)):
        yield module, own
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            # A layer as a whole: what is in it may use its neighbours' weights.
            yield from ((layer, list(layer.parameters())) for layer in child)
        else:
            yield from _layers(child)


def _distance(logits: Any, expected: Any) -> float:
    """Return the root mean square difference as a share of the root mean square of what is expected."""
    return float((logits - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def _nothing_learned(directory: Path, why: str) -> UserError:
    return UserError(
        "nothing_learned",
        f"The trained model in {directory} is the base model: {why}. It was not published",
        "Raise training_learning_rate, or lower training_lr_warmup_steps: in the first step of a warm-up it is 0",
    )


def _broken(directory: Path, why: str) -> RunFailed:
    return RunFailed(
        "infrastructure",
        "model_not_loadable",
        f"The trained model in {directory} is not usable: {why}",
        "It was not published. The training log says what happened while it was saved",
    )
