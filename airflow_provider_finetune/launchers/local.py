"""The runner as a process on this machine: its command line, its environment, and what its end means."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.last_words import meaning_of_log
from airflow_provider_finetune.contract.outcome import Failure

DEFAULT_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The component's INFO would drown the progress lines.
    "NCCL_DEBUG": "WARN",
    "PYTHONUNBUFFERED": "1",
}

_OF_THIS_INTERPRETER = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def command(python: str, *, runner: str, spec: str, termination_message: str) -> list[str]:
    """Return the command line of a training.

    :param python: interpreter with training-hub.
    :param runner: path of the packed runner.
    :param spec: path of the training spec.
    :param termination_message: path that the small outcome is written to.
    """
    files = ["--spec", spec, "--termination-message", termination_message]
    return [python, runner, "run", *files, "--exit-with-parent"]


def environment(
    inherited: Mapping[str, str],
    *,
    same_interpreter: bool,
    training_envs: Mapping[str, Any],
    secrets: Mapping[str, str],
) -> dict[str, str]:
    """Return the environment of the runner; later ones win: inherited, defaults, ``training_envs``, ``secrets``.

    Airflow's own variables stay behind: they hold its connections and its database's password.

    :param inherited: environment of the task.
    :param same_interpreter: false drops what belongs to the task's own interpreter.
    :param training_envs: the documented parameter.
    :param secrets: resolved values by variable name.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("AIRFLOW", "_AIRFLOW")) and (same_interpreter or name not in _OF_THIS_INTERPRETER)
    }
    return {**kept, **DEFAULT_ENVIRONMENT, **{name: str(value) for name, value in training_envs.items()}, **secrets}


def failure_without_outcome(last_lines: Sequence[str], exit_status: int, *, killed: bool) -> Failure:
    """Return why a runner that left no outcome has ended, as far as its exit status tells.

    :param last_lines: what it said before its end.
    :param exit_status: ``-n`` where signal ``n`` ended it.
    :param killed: the task itself asked for its end.
    """
    lines = list(last_lines)
    how = f"was ended by {_signal_name(-exit_status)}" if exit_status < 0 else f"exited with status {exit_status}"
    if killed:
        message = f"The task was ended, and with it the runner, which {how}."
        return replace(failure_of("task_ended", message, "Run the task again."), log_tail=lines)
    if exit_status != -signal.SIGKILL and (known := meaning_of_log(lines)):
        return replace(known, log_tail=lines)
    last = f" Its last line: {lines[-1]}" if lines else " It printed nothing."
    cure = "Look at its last lines in this log."
    if exit_status == -signal.SIGKILL:
        cure = "Nobody here sent that signal; most often the machine was out of memory (see its kernel log)."
    return replace(failure_of("runner_died", f"The runner {how} and left no outcome.{last}", cure), log_tail=lines)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
