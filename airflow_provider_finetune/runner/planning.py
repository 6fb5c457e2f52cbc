"""Batches and steps of the training to come."""

from __future__ import annotations

import math
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.report import Report


def ensure_processes_can_train(spec: TrainingSpec, device: str, processes: int) -> None:
    """Refuse several processes where what they train would not be what one trains.

    :param spec: what is to be trained.
    :param device: ``cuda`` or ``cpu``.
    :param processes: that train side by side, over all nodes.
    :raises UserError: that is so.
    """
    if spec.algorithm == "osft" and device == "cpu" and processes > 1:
        # mini-trainer adds up projections over processes, which is right only where each has a part of the matrices.
        raise UserError(
            "processes_wrong",
            f"OSFT trains in one process on a CPU, and {processes} were asked for",
            "Leave training_resource_num_workers and training_resource_num_procs_per_worker out, or ask for GPUs",
        )


def plan_steps(
    spec: TrainingSpec,
    sent: dict[str, Any],
    report: Report,
    parameters: dict[str, Any],
    events: Events,
    *,
    device: str,
    processes: int,
) -> int:
    """Choose the batches, put them into the keywords, and say how many steps will come.

    :param spec: what is to be trained.
    :param sent: training-hub's keywords, which are changed.
    :param report: rows and their lengths; of a sample they are estimates.
    :param parameters: the documented ones.
    :param events: takes the lines.
    :param device: ``cuda`` or ``cpu``.
    :param processes: that train side by side, over all nodes.
    :return: steps of the whole training.
    """
    if device == "cuda" and spec.algorithm != "lora_sft":
        effective, made_of = parameters["effective_batch_size"], " packed by length"
        an_epoch = math.ceil(report.rows / effective)
    else:
        batching = algorithms.batching(spec, device=device, longest=report.tokenised.longest, processes=processes)
        effective = batching.effective
        made_of = f" = micro-batch {batching.micro_batch_size} x accumulation {batching.accumulation_steps} x "
        made_of += "1 process" if processes == 1 else f"{processes} processes"
        sent.pop("micro_batch_size", None)
        # The backends ignore micro_batch_size beside an effective batch size and divide this one by the accumulation.
        sent |= {"effective_batch_size": effective, "gradient_accumulation_steps": batching.accumulation_steps}
        micro_batches = math.ceil(math.ceil(report.rows / batching.micro_batch_size) / processes)
        an_epoch = math.ceil(micro_batches / batching.accumulation_steps)
    wanted, epochs = parameters["effective_batch_size"], parameters["num_epochs"]
    if effective != wanted:
        events.warn(f"the effective batch size is {effective} instead of {wanted}, {_why(spec, processes)}")
    if report.rows < wanted:
        events.warn(f"an epoch has {report.rows} rows, fewer than the effective batch size {wanted}: one step each")
    events.report(plan={"steps": an_epoch * epochs, "epochs": epochs, "effective_batch_size": effective})
    events.say(
        f"plan: {_about(report)}{an_epoch * epochs} steps in {epochs} {'epoch' if epochs == 1 else 'epochs'}, "
        f"effective batch {effective}{made_of}, "
        f"learning rate {parameters['learning_rate']:g}"
    )
    _warn_of_what_never_comes(sent, parameters, an_epoch * epochs, events)
    return an_epoch * epochs


def _warn_of_what_never_comes(sent: dict[str, Any], parameters: dict[str, Any], steps: int, events: Events) -> None:
    if not sent.get("eval_data_path") and "eval_steps" in sent:
        events.warn("eval_steps has no effect: nothing is evaluated without extra_args['eval_data_path']")
    elif sent.get("eval_data_path") and sent.get("eval_steps", 500) > steps:
        events.warn(f"nothing is evaluated: extra_args['eval_steps'] (500 if left out) is above the {steps} steps")
    if parameters["lr_warmup_steps"] >= steps:
        events.warn(
            f"the warm-up takes {parameters['lr_warmup_steps']} steps and the whole training {steps}, so the learning "
            "rate is never reached: lower training_lr_warmup_steps"
        )


def _about(report: Report) -> str:
    return "about " if report.sampled else ""


def _why(spec: TrainingSpec, processes: int) -> str:
    if "micro_batch_size" in spec.extra_args or "gradient_accumulation_steps" in spec.extra_args:
        return "as extra_args asks"
    return f"the next that {processes} processes can share evenly"
