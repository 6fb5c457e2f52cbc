"""What the check tells the user of rows, mask, samples and steps to come, and what of it ends the run."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import islice
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import algorithms, dataset, masking
from airflow_provider_finetune.runner.dataset import Structure
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.masking import Encoding, Tokenised


def judge_rows(
    spec: TrainingSpec, structure: Structure, tokenised: Tokenised, max_seq_len: int, events: Events
) -> None:
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
        f"{figures['tokens_p95']}, longest {figures['tokens_longest']})"
    )
    if tokenised.cut_rows:
        events.warn(f"{tokenised.cut_rows} rows are cut to training_max_seq_len={max_seq_len}")
    for dropped in (structure.dropped, tokenised.dropped):
        if dropped.total:
            events.warn(f"not trained on: {dropped.describe()}")
    structure.dropped.absorb(tokenised.dropped)
    dataset.ensure_few_dropped(structure.rows, structure.dropped, spec.max_dropped)


TRAINED_WHOLE = {"loss_on": "all", "trained_share": 1.0, "trained_tokens": None}
"""What the library's own way of chat rows means for the report."""


_WHOSE = {
    "assistant": "those of the assistant",
    "messages": "those of all messages but the system's, as training_unmask_messages asks",
}


def judge_mask(dataset_type: str, structure: Structure, tokenised: Tokenised, events: Events) -> None:
    """Say which tokens are trained, and refuse other ways of the library than with chat rows."""
    if dataset_type not in ("passthrough", "chat_template"):
        raise UserError(
            "dataset_type_unknown",
            f"extra_args sets dataset_type={dataset_type!r}, and this version reads chat rows",
            "Leave it out, or set 'chat_template' for training-hub's own way, which trains on the prompts as well",
        )
    if dataset_type == "chat_template":
        if structure.dropped.total:
            raise UserError(
                "dataset_unusable",
                f"With dataset_type='chat_template' training-hub reads {structure.path} itself, and cannot leave out "
                f"the rows that cannot be used: {structure.dropped.describe()}",
                "Mend the rows named, or leave dataset_type out",
            )
        events.warn("all tokens are trained, the prompts as well, as extra_args['dataset_type'] asks")
        return
    share = tokenised.summary()["trained_share"]
    events.say(f"mask: {share:.0%} of the tokens are trained, {_WHOSE[tokenised.loss_on]}")
    if tokenised.endless_rows:
        events.warn(
            f"{tokenised.endless_rows} of {tokenised.rows} rows end without a special token, so the model does not "
            "learn to end its turn: the chat template writes none behind the assistant's text"
        )


def show_samples(count: int, structure: Structure, tokenizer: Any, encoding: Encoding, events: Events) -> None:
    """Print the first rows as the model sees them."""
    for line, messages in islice(dataset.chat_rows(structure.path), count):
        # A row that the template refuses is dropped, counted and named elsewhere.
        with suppress(Exception):
            events.show(f"sample of line {line}, trained between ⟦ and ⟧:")
            events.show(masking.marked(messages, tokenizer, encoding))


def plan_steps(
    spec: TrainingSpec,
    sent: dict[str, Any],
    tokenised: Tokenised,
    parameters: dict[str, Any],
    events: Events,
    processes: int,
) -> None:
    """Choose the batches, put them into the keywords, and say how many steps will come."""
    batching = algorithms.batching(spec, device="cpu", longest=tokenised.longest, processes=processes)
    wanted = parameters["effective_batch_size"]
    if batching.effective != wanted:
        events.warn(f"the effective batch size is {batching.effective} instead of {wanted}, {_why(spec, processes)}")
    if tokenised.rows < wanted:
        events.warn(f"an epoch has {tokenised.rows} rows, fewer than the effective batch size {wanted}: one step each")
    sent.pop("micro_batch_size", None)
    # The backends ignore micro_batch_size beside an effective batch size and divide this one by the accumulation.
    sent["effective_batch_size"] = batching.effective
    sent["gradient_accumulation_steps"] = batching.accumulation_steps
    micro_batches = math.ceil(math.ceil(tokenised.rows / batching.micro_batch_size) / processes)
    steps = math.ceil(micro_batches / batching.accumulation_steps) * parameters["num_epochs"]
    epochs = parameters["num_epochs"]
    events.say(
        f"plan: {steps} steps in {epochs} {'epoch' if epochs == 1 else 'epochs'}, "
        f"effective batch {batching.effective} = "
        f"micro-batch {batching.micro_batch_size} x accumulation {batching.accumulation_steps} x "
        f"{'1 process' if processes == 1 else f'{processes} processes'}, "
        f"learning rate {parameters['learning_rate']:g}"
    )
    if not sent.get("eval_data_path") and "eval_steps" in sent:
        events.warn("eval_steps has no effect: nothing is evaluated without extra_args['eval_data_path']")
    elif sent.get("eval_data_path") and sent.get("eval_steps", 500) > steps:
        events.warn(f"nothing is evaluated: extra_args['eval_steps'] (500 if left out) is above the {steps} steps")
    if parameters["lr_warmup_steps"] >= steps:
        events.warn(
            f"the warm-up takes {parameters['lr_warmup_steps']} steps and the whole training {steps}, so the learning "
            "rate is never reached: lower training_lr_warmup_steps"
        )


def _why(spec: TrainingSpec, processes: int) -> str:
    if "micro_batch_size" in spec.extra_args or "gradient_accumulation_steps" in spec.extra_args:
        return "as extra_args asks"
    return f"the next that {processes} processes can share evenly"
