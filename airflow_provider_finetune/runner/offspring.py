"""Why processes that a library has started by torchrun have ended, read from what they have printed.

The libraries keep it in a file and raise that they have failed, and no more.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.last_words import behind
from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.runner.failures import explain

_LOGS = {"osft": "training_log_node{}.log", "sft": "full_logs_global{}.log"}
_READ = 1 << 20

_RAISED = re.compile(
    r"(?:\[rank(?P<rank>\d+)\]: )?(?P<type>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)): (?P<text>.*)"
)
"""The last line of a traceback; PyTorch puts the process in front of it."""
_OF_TORCHRUN = ("ChildFailedError", "SignalException")
_ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*: (?P<rank>\d+).*?exitcode\s*: (?P<code>-?\d+)", re.S)


def why_ended(checkpoints: Path, algorithm: str, node: int) -> Failure | None:
    """Return why the process that was first has ended, ``None`` where nothing tells.

    :param checkpoints: training-hub's ``ckpt_output_dir``, in which the libraries keep what was printed.
    :param algorithm: ``osft`` or ``sft``.
    :param node: on which of several nodes.
    """
    try:
        with (checkpoints / _LOGS[algorithm].format(node)).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _READ))
            printed = file.read().decode(errors="replace")
    except (KeyError, OSError):
        return None
    root = _ROOT_CAUSE.search(printed)
    if root and int(root["code"]) < 0:
        return killed(int(root["rank"]), -int(root["code"]))
    raised = [found for line in printed.splitlines() if (found := _RAISED.fullmatch(line.strip()))]
    raised = [found for found in raised if not found["type"].endswith(_OF_TORCHRUN)]
    failure = _explained(raised, root["rank"] if root else None)
    return behind(failure, printed.splitlines()) if failure else None


def _explained(raised: Sequence[re.Match[str]], rank: str | None) -> Failure | None:
    """Explain the last exception of a process; where no line says whose it is, the last of all."""
    of_rank = [found for found in raised if found["rank"] == rank] or raised
    if not of_rank:
        return None
    name = of_rank[-1]["type"].rpartition(".")[2]
    return explain(type(name, (Exception,), {})(of_rank[-1]["text"]))


def killed(rank: int, number: int) -> Failure:
    """Return the failure of a process that a signal has ended.

    :param rank: of the process.
    :param number: of the signal.
    """
    return failure_of(
        "killed",
        f"Process {rank} of the training was ended by {signal.Signals(number).name}",
        "The last lines of train.log stand above. SIGKILL often means that the machine ran out of memory",
    )
