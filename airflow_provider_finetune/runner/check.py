"""Everything that can be known before the first training step, cheapest first; the weights are not touched."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms, dataset, findings, masking, model, storage
from airflow_provider_finetune.runner.dataset import Structure
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.workdir import WorkDir


@dataclass(frozen=True)
class Prepared:
    """What the check hands to the training."""

    model: str
    tokenizer: Any
    keywords: dict[str, Any]


def check(spec: TrainingSpec, work_dir: WorkDir, events: Events) -> Prepared:
    """Check and prepare one training.

    :param spec: what is to be trained.
    :param work_dir: where the tokenised data goes.
    :param events: takes the report of what was found.
    :raises RunFailed: something would make the training fail or its model wrong.
    """
    _ensure_outputs_writable(spec)
    structure = dataset.check_structure(dataset.locate(spec.dataset))
    dataset.ensure_few_dropped(structure.rows, structure.dropped, spec.max_dropped)
    events.say(f"data: {structure.path}, {structure.rows} rows, {structure.usable} of the right form")
    base_model = model.locate(spec.base_model)
    _ensure_installed(spec)
    with events.timed("seconds_import"):
        backend = _import_libraries()
    tokenizer = model.load_tokenizer(base_model, trust_remote_code=bool(spec.extra_args.get("trust_remote_code")))
    _ensure_cpu_backend(spec)
    for sentence in algorithms.without_effect(spec, "cpu"):
        events.warn(sentence)
    return _prepare(spec, work_dir, events, structure, base_model, tokenizer, backend)


def _prepare(
    spec: TrainingSpec,
    work_dir: WorkDir,
    events: Events,
    structure: Structure,
    base_model: str,
    tokenizer: Any,
    backend: str,
) -> Prepared:
    parameters = algorithms.effective_parameters(spec)
    data_dir = _data_dir(parameters["data_output_dir"], work_dir)
    data_path = data_dir / "train.parquet"
    sent = algorithms.keywords(
        spec,
        device="cpu",
        data_path=str(data_path),
        model_path=base_model,
        checkpoints=str(work_dir.checkpoints),
        data_dir=str(data_dir),
    )
    sent = algorithms.with_extra_args(sent, spec.extra_args)
    algorithms.refuse_what_would_be_dropped(spec.algorithm, backend, sent)
    if sent["dataset_type"] != "passthrough":
        sent["data_path"] = str(structure.path)
    rows = dataset.chat_rows(structure.path)
    tokenised = masking.tokenise(rows, tokenizer, parameters["max_seq_len"], data_path)
    dataset.ensure_unchanged(structure)
    findings.judge_rows(spec, structure, tokenised, parameters["max_seq_len"], events)
    findings.judge_mask(sent["dataset_type"], structure, tokenised, events)
    if sent["dataset_type"] == "passthrough":
        findings.show_samples(spec.show_samples, structure, tokenizer, parameters["max_seq_len"], events)
    if "eval_data_path" in sent and sent["dataset_type"] == "passthrough":
        sent["eval_data_path"] = _tokenise_evaluation(sent["eval_data_path"], tokenizer, parameters, data_dir)
    findings.plan_steps(spec, sent, tokenised, parameters, events)
    _ensure_arguments_fit(sent, base_model, tokenised.longest)
    events.report(
        dataset={
            "path": str(structure.path),
            "sha256": structure.sha256,
            "rows": structure.rows,
            "rows_used": tokenised.rows,
            "rows_dropped": structure.dropped.rows,
            **tokenised.summary(),
            **({} if sent["dataset_type"] == "passthrough" else findings.TRAINED_WHOLE),
        }
    )
    return Prepared(base_model, tokenizer, sent)


def _data_dir(asked_for: str | None, work_dir: WorkDir) -> Path:
    """Return where the tokenised data goes: in a directory of this attempt, also where several were given one."""
    if not asked_for:
        return work_dir.data
    identity = hashlib.sha256(str(work_dir.path).encode()).hexdigest()[:12]
    directory = storage.local_path(asked_for, "training_data_output_dir") / identity
    storage.ensure_writable(directory, "training_data_output_dir")
    return directory


def _ensure_arguments_fit(sent: dict[str, Any], base_model: str, longest: int) -> None:
    """Find before the weights are touched what the libraries would find after."""
    from airflow_provider_finetune.runner.backends import trl

    try:
        arguments = trl.training_arguments(sent)
        for item in fields(arguments):
            # TRL checks no types; the optimizer would in its first step.
            if type(item.default) in (int, float) and isinstance(value := getattr(arguments, item.name), str):
                raise TypeError(f"{item.name}={value!r} must be a number")
        adapter = trl.lora_config(sent)
    except Exception as error:
        raise UserError(
            "arguments_refused",
            f"TRL or PEFT refuses the training's arguments: {error}",
            "Correct training_lr_scheduler or the values in extra_args; their types are those of training-hub",
        ) from error
    model.ensure_fits(base_model, adapter, longest, trust_remote_code=bool(sent.get("trust_remote_code")))


def _import_libraries() -> str:
    """Import training-hub and return the name of the backend that is registered there.

    The garbage collector would go again and again through the million objects that these imports make and none of
    which is garbage: a fifth of the time.
    """
    gc.disable()
    try:
        from airflow_provider_finetune.runner.backends import trl
    finally:
        gc.freeze()
        gc.enable()
    return trl.register()


def _tokenise_evaluation(uri: str, tokenizer: Any, parameters: dict[str, Any], data_dir: Path) -> str:
    structure = dataset.check_structure(dataset.locate(uri, "extra_args['eval_data_path']"))
    target = data_dir / "eval.parquet"
    if not masking.tokenise(dataset.chat_rows(structure.path), tokenizer, parameters["max_seq_len"], target).rows:
        raise UserError(
            "dataset_unusable", f"eval_data_path={uri!r} has no row to evaluate on", "Mend it, or leave it out"
        )
    return str(target)


def _ensure_outputs_writable(spec: TrainingSpec) -> None:
    for argument, name in (("output_metrics", "metrics.json"), ("output_loss_chart", "loss.html")):
        uri = getattr(spec, argument)
        if uri:
            storage.ensure_writable(storage.output_file(uri, argument, name).parent, argument)
    if spec.output_model:
        target = storage.local_path(spec.output_model, "output_model")
        places = (spec.base_model, spec.dataset, spec.work_dir)
        needed = [storage.local_path(place, "") for place in places if storage.scheme(place) in (None, "file")]
        storage.ensure_replaceable(target, needed)
        storage.ensure_writable(target.resolve().parent, "output_model")


def _ensure_installed(spec: TrainingSpec) -> None:
    needed = {"training_hub": "training-hub", "trl": "trl", "peft": "peft"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            "training_hub_missing",
            f"{sys.executable} has no {', '.join(missing)}",
            "Install 'airflow-provider-finetune[local]' into an environment and name its interpreter in local_python "
            "or [finetune] local_python",
        )
    if spec.algorithm != "lora_sft":
        raise UserError(
            "algorithm_not_there_yet",
            f"This version's runner trains LoRA; {spec.algorithm.upper()} was asked for",
            "Use LoRAOperator",
        )


def _ensure_cpu_backend(spec: TrainingSpec) -> None:
    """Refuse where a GPU was asked for or could be meant: better said at once than crawling on a CPU."""
    import torch

    if spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available()):
        raise UserError(
            "cuda_not_there_yet",
            "This version trains on the CPU only, and "
            + ("a GPU was asked for" if spec.device == "cuda" else "this machine has a CUDA device"),
            "Set training_resource_gpu_per_worker=0 to train on the CPU",
        )
    algorithms.refuse_quantisation_on_cpu(spec)
