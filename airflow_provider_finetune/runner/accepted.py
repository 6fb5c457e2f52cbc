"""Which keywords reach a backend of the installed training-hub: its functions drop in silence what they do not know."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from airflow_provider_finetune.runner.failures import UserError


def refuse_what_would_be_dropped(algorithm: str, backend: str, names: Iterable[str]) -> None:
    """Hold keywords against the installed training-hub, whose functions drop what they do not know in silence.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param backend: name of the algorithm's backend in training-hub's registry.
    :param names: the keywords that are about to be sent.
    :raises UserError: one of them would be dropped.
    """
    dropped = sorted(set(names) - accepted_keywords(algorithm, backend))
    if dropped:
        raise UserError(
            "keyword_unknown",
            f"training-hub {version('training-hub')} would ignore {', '.join(dropped)} for {algorithm} ({backend})",
            "Check the spelling in extra_args, or use an image with a training-hub that knows it",
        )


def refuse_a_trl_that_does_not_fit(sent: Mapping[str, Any]) -> None:
    """Hold what training-hub's LoRA on CUDA asks of TRL against the installed one, before weights are fetched.

    What it does with values is Unsloth's to say, which changes TRL when it is imported.

    :param sent: training-hub's keywords.
    :raises UserError: an option that it always sets is none of the installed TRL and transformers.
    """
    from training_hub import UnslothLoRABackend

    try:
        UnslothLoRABackend()._build_training_args(dict(sent))
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            names = ("training-hub", "trl", "transformers")
            installed = ", ".join(f"{name} {version(name)}" for name in names)
            raise UserError(
                "libraries_do_not_fit",
                f"These releases do not fit each other: {installed}: {error}",
                "Use an image with the releases that training-hub[lora] was made for, such as an older transformers",
            ) from error
    except Exception:
        # Only names are asked about here; what is wrong with a value is for the training to say.
        return


_BEFORE_THE_BACKEND = frozenset({"callbacks", "enable_jit_checkpoint", "checkpoint_storage"})
"""Keywords that the algorithms themselves act on."""

_READ_BY_OSFT_BACKEND = frozenset(
    {
        *("model_path", "data_path", "ckpt_output_dir", "max_seq_len", "data_output_dir", "use_processed_dataset"),
        *("unmask_messages", "is_pretraining", "block_size", "document_column_name"),
        *("effective_batch_size", "num_epochs", "use_liger", "warmup_steps", "target_patterns", "unfreeze_rank_ratio"),
        *("nproc_per_node", "nnodes", "node_rank", "rdzv_id", "rdzv_endpoint", "master_addr", "master_port"),
    }
)
"""What training-hub's OSFT backend uses, renames or takes apart before the rest meets mini-trainer's fields."""


def accepted_keywords(algorithm: str, backend: str) -> set[str]:
    """Return the keywords that reach the installed backend.

    instructlab-training filters by the fields of its arguments. Everybody else reads some names and no others (a
    signature and a record also take names that nothing reads), so their source decides.

    :param algorithm: ``osft``, ``sft`` or ``lora_sft``.
    :param backend: name of the algorithm's backend in training-hub's registry.
    """
    from training_hub import AlgorithmRegistry

    if backend == "instructlab-training":
        from instructlab.training import TrainingArgs

        train = AlgorithmRegistry.get_algorithm(algorithm).train
        named = {
            name for name, item in inspect.signature(train).parameters.items() if item.kind is not item.VAR_KEYWORD
        }
        return (named - {"self"}) | set(TrainingArgs.model_fields)
    if backend == "mini-trainer":
        from mini_trainer import api_train

        # What is left is not handed to the program that trains: in mini-trainer 0.9 the optimizer's beta1 and beta2.
        handed_on = set(_READ_OF_ARGUMENTS.findall(inspect.getsource(api_train)))
        return handed_on | _READ_BY_OSFT_BACKEND | _BEFORE_THE_BACKEND
    source = inspect.getsource(inspect.getmodule(AlgorithmRegistry.get_backend(algorithm, backend)))  # type: ignore[arg-type]
    read = set(_READ_OF_PARAMS.findall(source))
    if algorithm == "lora_sft":
        return read | _BEFORE_THE_BACKEND
    # What the algorithm makes of enable_jit_checkpoint; checkpoint_storage is an option of the other backends.
    return (read - {"on_demand_checkpointing"}) | {"enable_jit_checkpoint", "callbacks"} | _wanted(algorithm)


def _wanted(algorithm: str) -> set[str]:
    """Return the keywords that training-hub's function of an algorithm cannot be called without."""
    import training_hub

    named = inspect.signature(getattr(training_hub, algorithm)).parameters.values()
    return {item.name for item in named if item.default is item.empty and item.kind is not item.VAR_KEYWORD}


_READ_OF_PARAMS = re.compile(r"""params(?:\.get)?[\[(]\s*['"](\w+)['"]""")
_READ_OF_ARGUMENTS = re.compile(r"train_args\.(\w+)")
