"""A batch: one DAG of mapped tasks, each with its part; run to its end, and then recorded."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from airflow_provider_finetune.launchers.observed import DOMAIN, JOB, WHOLE
from tests.faults.arena import SENT, Arena
from tests.faults.record import Left, Program, Record, Task
from tests.faults.verdict import owned_by_nobody

PARTS = {"succeeds": 6, "breaks once": 2, "fails": 1, "dies once": 1}
"""Of ten tasks."""

SECONDS = (2.0, 20.0)
FINAL = {"success", "failed"}

DAG_FILE = """
from airflow.sdk import DAG
from airflow_provider_finetune import LoRAOperator

with DAG({dag!r}, schedule=None):
    LoRAOperator.partial(task_id="train", **{task!r}).expand(training_envs={envs!r})
"""


class Batch:
    """Some tasks in an arena.

    :param where: the arena.
    :param first: number of its first task.
    :param tasks: how many.
    :param seed: of their parts.
    """

    def __init__(self, where: Arena, first: int, tasks: int, seed: int) -> None:
        self.dag, self.first = f"batch_{first}", first
        self._where = where
        chance = random.Random(f"{seed} {first} parts")
        parts = [part for part, share in PARTS.items() for _ in range(share)]
        # The first ones play each part once, so that a short run has them all.
        drawn = [*PARTS, *chance.choices(parts, k=tasks)][:tasks]
        self.tasks = [
            Task(number=first + index, part=part, seconds=round(chance.triangular(*SECONDS, SECONDS[0]), 1))
            for index, part in enumerate(drawn)
        ]

    def run(self, timeout: float) -> None:
        """Run it until each task has ended, or the time is over.

        :param timeout: seconds.
        """
        envs = [
            {"NUMBER": str(task.number), "PART": task.part, "SECONDS": str(task.seconds), "SENT": SENT}
            for task in self.tasks
        ]
        self._where.airflow.write_dag(self.dag, DAG_FILE.format(dag=self.dag, task=self._where.task, envs=envs))
        self._run_id = self._where.airflow.run(self.dag)
        _wait(self._has_ended, timeout)

    def _has_ended(self) -> bool:
        states = [task["state"] for task in self._where.airflow.tasks(self.dag, self._run_id)]
        return len(states) == len(self.tasks) and set(states) <= FINAL

    def record(self) -> Record:
        """Return what has been seen of it, once what goes by itself is gone.

        A pod does so after its end, and a job after Airflow has noted the success.
        """
        record = self._record()
        end = time.monotonic() + 90
        while any(owned_by_nobody(record)) and time.monotonic() < end:
            time.sleep(1)
            record = self._record()
        return record

    def _record(self) -> Record:
        told = {task["map_index"]: task for task in self._where.airflow.tasks(self.dag, self._run_id)}
        return Record(
            tasks=[self._told(task, told.get(index, {})) for index, task in enumerate(self.tasks)],
            programs=self._programs(),
            made=self._made(),
            left=self._left(),
        )

    def _told(self, task: Task, told: dict[str, Any]) -> Task:
        airflow, index = self._where.airflow, task.number - self.first
        tries = int(told.get("try_number") or 0)
        logs = [airflow.log(self.dag, self._run_id, "train", number + 1, index) for number in range(tries)]
        succeeded = told.get("state") == "success"
        return Task(
            number=task.number,
            part=task.part,
            seconds=task.seconds,
            state=told.get("state"),
            tries=tries,
            ended=_seconds(told.get("end_date")),
            result=airflow.xcom(self.dag, self._run_id, "train", map_index=index) if succeeded else None,
            log="\n".join(logs),
        )

    def _programs(self) -> list[Program]:
        began: dict[str, dict[str, Any]] = {}
        ended: dict[str, dict[str, Any]] = {}
        for journal in (self._where.claim / "runs" / self.dag).rglob("journal.jsonl"):
            for entry in map(json.loads, journal.read_text().splitlines()):
                (began if entry["event"] == "began" else ended)[entry["run"]] = entry
        return [
            Program(
                number=entry["number"],
                run=run,
                job=entry["job"],
                began=entry["at"],
                ended=ended.get(run, {}).get("at"),
                how=ended.get(run, {}).get("event"),
            )
            for run, entry in began.items()
        ]

    def _made(self) -> list[str]:
        names = []
        for line in self._where.cluster.audit.read_text().splitlines():
            event = json.loads(line)
            asked, code = event["objectRef"], event.get("responseStatus", {}).get("code")
            if event["verb"] == "create" and code == 201 and asked.get("namespace") == self._where.namespace:
                made = event["responseObject"]["metadata"]
                if WHOLE in made.get("labels", {}) and made["annotations"][f"{DOMAIN}/dag_id"] == self.dag:
                    names.append(made["name"])
        return names

    def _left(self) -> list[Left]:
        where, jobs = self._where, {}
        get = ("--output=json", f"--namespace={where.namespace}")
        left = []
        for job in json.loads(where.cluster.kubectl("get", "trainjobs", *get))["items"]:
            about, conditions = job["metadata"], (job.get("status") or {}).get("conditions") or []
            if about["annotations"][f"{DOMAIN}/dag_id"] == self.dag:
                jobs[about["name"]] = number = self.first + int(about["annotations"][f"{DOMAIN}/map_index"])
                ended = any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)
                left.append(Left(kind="TrainJob", name=about["name"], number=number, job=about["name"], ended=ended))
        made = self._made()
        for pod in json.loads(where.cluster.kubectl("get", "pods", *get))["items"]:
            about, ended = pod["metadata"], pod["status"].get("phase") in ("Succeeded", "Failed")
            name, labels = about["name"], about.get("labels", {})
            job = labels.get(JOB, "")
            if WHOLE in labels and job in made:
                jobs[job] = self.first + int(about["annotations"][f"{DOMAIN}/map_index"])
            if job in jobs or job in made:
                kind = "Own pod" if WHOLE in labels else "Pod"
                left.append(Left(kind=kind, name=name, number=jobs.get(job, -1), job=job, ended=ended))
        return left


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None


def _wait(condition: Callable[[], bool], timeout: float) -> bool:
    end = time.monotonic() + timeout
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(1)
    return met
