"""Batches and steps of the training to come."""

from __future__ import annotations

import math
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.report import Report


def plan_steps(
    spec: TrainingSpec,
    sent: dict[str, Any],
    report: Report,
    parameters: dict[str, Any],
    events: Events,
    processes: int,
) -> int:
    """Choose the batches, put them into the keywords, and say how many steps will come.

    :param spec: what is to be trained.
    :param sent: training-hub's keywords, which are changed.
    :param report: rows and their lengths; of a sample they are estimates.
    :param parameters: the documented ones.
    :param events: takes the lines.
    :param processes: that train side by side, over all nodes.
    :return: steps of the whole training.
    """
    batching = algorithms.batching(spec, device="cpu", longest=report.tokenised.longest, processes=processes)
    wanted, epochs, about = parameters["effective_batch_size"], parameters["num_epochs"], _about(report)
    if batching.effective != wanted:
        events.warn(f"the effective batch size is {batching.effective} instead of {wanted}, {_why(spec, processes)}")
    if report.rows < wanted:
        events.warn(f"an epoch has {report.rows} rows, fewer than the effective batch size {wanted}: one step each")
    sent.pop("micro_batch_size", None)
    # The backends ignore micro_batch_size beside an effective batch size and divide this one by the accumulation.
    sent["effective_batch_size"] = batching.effective
    sent["gradient_accumulation_steps"] = batching.accumulation_steps
    micro_batches = math.ceil(math.ceil(report.rows / batching.micro_batch_size) / processes)
    steps = math.ceil(micro_batches / batching.accumulation_steps) * epochs
    events.say(
        f"plan: {about}{steps} steps in {epochs} {'epoch' if epochs == 1 else 'epochs'}, "
        f"effective batch {batching.effective} = "
        f"micro-batch {batching.micro_batch_size} x accumulation {batching.accumulation_steps} x "
        f"{'1 process' if processes == 1 else f'{processes} processes'}, "
        f"learning rate {parameters['learning_rate']:g}"
    )
    _warn_of_what_never_comes(sent, parameters, steps, events)
    return steps


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
