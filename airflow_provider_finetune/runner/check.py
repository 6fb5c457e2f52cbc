"""Everything that can be known before the first training step, cheapest first; the weights are not touched."""

from __future__ import annotations

import gc
import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms, dataset, masking, model, storage
from airflow_provider_finetune.runner.dataset import Structure
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.masking import Tokenised
from airflow_provider_finetune.runner.workdir import WorkDir


@dataclass(frozen=True)
class Prepared:
    """What the check hands to the training."""

    model: str
    tokenizer: Any
    keywords: dict[str, Any]
    total_steps: int


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
    data_dir = Path(parameters["data_output_dir"] or work_dir.data)
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
    _judge(spec, structure, tokenised, events)
    if "eval_data_path" in sent and sent["dataset_type"] == "passthrough":
        sent["eval_data_path"] = _tokenise_evaluation(sent["eval_data_path"], tokenizer, parameters, data_dir)
    steps = _plan(spec, sent, tokenised, parameters, events)
    events.report(
        dataset={
            "path": str(structure.path),
            "sha256": structure.sha256,
            "rows": structure.rows,
            "rows_used": tokenised.rows,
            "rows_dropped": structure.dropped.rows | tokenised.dropped.rows,
            **tokenised.summary(),
        }
    )
    return Prepared(base_model, tokenizer, sent, steps)


def _plan(
    spec: TrainingSpec, sent: dict[str, Any], tokenised: Tokenised, parameters: dict[str, Any], events: Events
) -> int:
    """Choose the batches, put them into the keywords, and say how many steps will come."""
    batching = algorithms.batching(spec, device="cpu", longest=tokenised.longest)
    wanted = parameters["effective_batch_size"]
    if batching.effective != wanted:
        events.warn(f"the effective batch size is {batching.effective} instead of {wanted}, as extra_args asks")
    if tokenised.rows < wanted:
        events.warn(f"an epoch has {tokenised.rows} rows, fewer than the effective batch size {wanted}: one step each")
    sent.pop("micro_batch_size", None)
    # lora_sft ignores micro_batch_size beside an effective batch size and divides this one by the accumulation.
    sent["effective_batch_size"] = batching.effective
    sent["gradient_accumulation_steps"] = batching.accumulation_steps
    micro_batches = math.ceil(tokenised.rows / batching.micro_batch_size)
    steps = math.ceil(micro_batches / batching.accumulation_steps) * parameters["num_epochs"]
    events.say(
        f"plan: {steps} steps in {parameters['num_epochs']} epochs, effective batch {batching.effective} = "
        f"micro-batch {batching.micro_batch_size} x accumulation {batching.accumulation_steps} x 1 process, "
        f"learning rate {parameters['learning_rate']:g}"
    )
    if parameters["lr_warmup_steps"] >= steps:
        events.warn(
            f"the warm-up takes {parameters['lr_warmup_steps']} steps and the whole training {steps}, so the learning "
            "rate is never reached: lower training_lr_warmup_steps"
        )
    return steps


def _judge(spec: TrainingSpec, structure: Structure, tokenised: Tokenised, events: Events) -> None:
    """Say what was dropped, cut and masked, and end where too little is left."""
    if not tokenised.rows:
        raise UserError(
            "dataset_unusable",
            f"The dataset {structure.path} has no row to train on: {tokenised.dropped.describe()}",
            "Mend the rows named, or raise training_max_seq_len",
        )
    figures = tokenised.summary()
    events.say(
        f"tokens: {figures['tokens']} in {tokenised.rows} rows (median {figures['tokens_median']}, 95 % "
        f"{figures['tokens_p95']}, longest {figures['tokens_longest']}); {figures['trained_share']:.0%} are trained, "
        "those of the assistant"
    )
    if tokenised.cut_rows:
        events.warn(f"{tokenised.cut_rows} rows are cut to training_max_seq_len={spec.parameters['max_seq_len']}")
    for dropped in (structure.dropped, tokenised.dropped):
        if dropped.total:
            events.warn(f"not trained on: {dropped.describe()}")
        for reason, count in dropped.rows.items() if dropped is tokenised.dropped else ():
            structure.dropped.rows[reason] = count
            structure.dropped.lines[reason] = dropped.lines[reason]
    dataset.ensure_few_dropped(structure.rows, structure.dropped, spec.max_dropped)


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
    structure = dataset.check_structure(dataset.locate(uri))
    target = data_dir / "eval.parquet"
    if not masking.tokenise(dataset.chat_rows(structure.path), tokenizer, parameters["max_seq_len"], target).rows:
        raise UserError(
            "dataset_unusable", f"eval_data_path={uri!r} has no row to evaluate on", "Mend it, or leave it out"
        )
    return str(target)


def _ensure_outputs_writable(spec: TrainingSpec) -> None:
    for argument in ("output_model", "output_metrics", "output_loss_chart"):
        uri = getattr(spec, argument)
        if uri:
            storage.ensure_writable(storage.local_path(uri, argument).parent, argument)


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
