"""Everything that can be known before the first training step, cheapest first; the weights are not touched."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms, backends, dataset, findings, masking, model, storage
from airflow_provider_finetune.runner.dataset import Structure
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.masking import Encoding
from airflow_provider_finetune.runner.nodes import placement
from airflow_provider_finetune.runner.workdir import WorkDir


@dataclass(frozen=True)
class Prepared:
    """What the check hands to the training: training-hub's ``keywords``, and what its model is held against."""

    model: str
    chat_template: str
    keywords: dict[str, Any]

    def to_json(self) -> str:
        """Return a document for processes that begin where the check has ended."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Prepared:
        """Read what :meth:`to_json` has written."""
        return cls(**json.loads(text))


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
        backend = _import_libraries(spec.algorithm)
    _ensure_device(spec)
    tokenizer = model.load_tokenizer(base_model, trust_remote_code=bool(spec.extra_args.get("trust_remote_code")))
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
    dataset_type = sent.get("dataset_type", "passthrough")
    if dataset_type != "passthrough":
        sent["data_path"] = str(structure.path)
    encoding = _encoding(spec.algorithm, parameters)
    tokenised = masking.tokenise(dataset.chat_rows(structure.path), tokenizer, encoding, data_path)
    dataset.ensure_unchanged(structure)
    findings.judge_rows(spec, structure, tokenised, parameters["max_seq_len"], events)
    findings.judge_mask(dataset_type, structure, tokenised, events)
    if dataset_type == "passthrough":
        findings.show_samples(spec.show_samples, structure, tokenizer, encoding, events)
        if "eval_data_path" in sent:
            sent["eval_data_path"] = _tokenise_evaluation(sent["eval_data_path"], tokenizer, encoding, data_dir)
    algorithms.ensure_a_model_is_saved(spec, tokenised.rows)
    findings.plan_steps(spec, sent, tokenised, parameters, events, placement(spec, os.environ).processes)
    _ensure_arguments_fit(spec.algorithm, sent, base_model, tokenised.longest)
    events.report(
        dataset={
            "path": str(structure.path),
            "sha256": structure.sha256,
            "rows": structure.rows,
            "rows_used": tokenised.rows,
            "rows_dropped": structure.dropped.rows,
            **tokenised.summary(),
            **({} if dataset_type == "passthrough" else findings.TRAINED_WHOLE),
        }
    )
    return Prepared(base_model, tokenizer.chat_template, sent)


def _encoding(algorithm: str, parameters: dict[str, Any]) -> Encoding:
    return Encoding(
        parameters["max_seq_len"],
        drop_longer=algorithm != "lora_sft",
        unmask=bool(parameters.get("unmask_messages")),
    )


def _data_dir(asked_for: str | None, work_dir: WorkDir) -> Path:
    """Return where the tokenised data goes: in a directory of this attempt, also where several were given one."""
    if not asked_for:
        return work_dir.data
    identity = hashlib.sha256(str(work_dir.path).encode()).hexdigest()[:12]
    directory = storage.local_path(asked_for, "training_data_output_dir") / identity
    storage.ensure_writable(directory, "training_data_output_dir")
    return directory


def _ensure_arguments_fit(algorithm: str, sent: dict[str, Any], base_model: str, longest: int) -> None:
    """Find before the weights are touched what the libraries would find after."""
    backend = backends.of(algorithm)
    try:
        arguments = backend.training_arguments(sent)
        for item in fields(arguments):
            # TRL checks no types; the optimizer would in its first step.
            if type(item.default) in (int, float) and isinstance(value := getattr(arguments, item.name), str):
                raise TypeError(f"{item.name}={value!r} must be a number")
        adapter = backend.lora_config(sent) if algorithm == "lora_sft" else None
    except Exception as error:
        raise UserError(
            "arguments_refused",
            f"TRL or PEFT refuses the training's arguments: {error}",
            "Correct training_lr_scheduler or the values in extra_args; their types are those of training-hub",
        ) from error
    model.ensure_fits(base_model, adapter, longest, trust_remote_code=bool(sent.get("trust_remote_code")))


def _import_libraries(algorithm: str) -> str:
    """Import training-hub and return the name of the backend that is registered there.

    The garbage collector would go again and again through the million objects that these imports make and none of
    which is garbage: a fifth of the time.
    """
    gc.disable()
    try:
        name: str = backends.of(algorithm).register()
    finally:
        gc.freeze()
        gc.enable()
    return name


def _tokenise_evaluation(uri: str, tokenizer: Any, encoding: Encoding, data_dir: Path) -> str:
    structure = dataset.check_structure(dataset.locate(uri, "extra_args['eval_data_path']"))
    target = data_dir / "eval.parquet"
    if not masking.tokenise(dataset.chat_rows(structure.path), tokenizer, encoding, target).rows:
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
    if spec.algorithm == "osft":
        raise UserError(
            "algorithm_not_there_yet",
            "This version's runner trains SFT and LoRA; OSFT was asked for",
            "Set training_algorithm='SFT', or use LoRAOperator",
        )


def _ensure_device(spec: TrainingSpec) -> None:
    """Refuse where a GPU was asked for or could be meant: better said at once than crawling on a CPU."""
    import torch

    if spec.device == "cuda" and not torch.cuda.is_available():
        raise RunFailed(
            "infrastructure",
            "no_cuda_device",
            "A GPU was asked for, and this machine has no CUDA device that PyTorch can use",
            "Look at the node's driver and device plugin, and whether the image's PyTorch is made for its GPU",
        )
    if spec.device != "cpu" and torch.cuda.is_available():
        raise UserError(
            "cuda_not_there_yet",
            "This version trains on the CPU only, and "
            + ("a GPU was asked for" if spec.device == "cuda" else "this machine has a CUDA device"),
            "Set training_resource_gpu_per_worker=0 to train on the CPU",
        )
    algorithms.refuse_quantisation_on_cpu(spec)
