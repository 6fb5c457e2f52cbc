"""What has been seen of a batch, from five sides that do not know of each other.

Tasks as Airflow's REST API tells them; programs as they have noted themselves on the claim; workloads made as the API
server has audited them; what is left in the cluster; files in which a secret was found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: what it plays, and what came of it.

    * ``number``: unique in all batches; ``part``: see ``stand_in.py``; ``seconds``: how long its program takes
    * ``state``, ``tries``: Airflow's; ``ended``: when, in seconds since the epoch
    * ``result``: its return value in XCom; ``log``: of all its tries
    """

    number: int
    part: str
    seconds: float = 0.0
    state: str | None = None
    tries: int = 1
    ended: float | None = None
    result: dict[str, Any] | None = None
    log: str = ""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One run of the program in a pod. ``how``: ``succeeded``, ``failed``, ``killed``, or ``None`` without a word."""

    number: int
    run: str
    job: str
    began: float
    ended: float | None = None
    how: str | None = None


@dataclass(frozen=True, kw_only=True)
class Left:
    """A workload (``kind``: ``TrainJob``, ``Own pod``) or a pod of one (``Pod``) that is still there.

    * ``job``: whose pod it is; ``ended``: it can do nothing any more
    """

    kind: str
    name: str
    number: int
    job: str
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything. ``made``: names of the workloads that the API server has made, as often as it has."""

    tasks: list[Task]
    programs: list[Program]
    made: list[str] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
