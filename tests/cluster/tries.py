"""The tries of one task on a cluster: each is an operator and a trigger of its own, as worker and triggerer run them.

Airflow itself is left out, so that a try can end at any of its lines, as it does with its process.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_finetune import LoRAOperator
from airflow_provider_finetune.triggers import TrainingTrigger
from tests.cluster.bed.cluster import Cluster
from tests.cluster.observer import Observer
from tests.cluster.stand_in import StandIn

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

LAUNCHERS = ["trainjob", "pod"]
RETRIES = 3

Jobs = Callable[[], list[str]]
Running = Callable[[str], str]
Told = Callable[[], str]

_ids = itertools.count()


class Crash(BaseException):
    """The end of a process, after which none of its lines runs."""


class _Operator(LoRAOperator):
    log = logging.getLogger("task")  # type: ignore[assignment]  # Airflow's own writes to wherever it is configured to


class Try:
    """One try.

    :param ti: what Airflow tells of it.
    :param arguments: of the operator.
    """

    def __init__(self, ti: SimpleNamespace, arguments: dict[str, Any]) -> None:
        self.ti, self._arguments = ti, arguments
        self.xcom: dict[str, Any] = {}
        self.workload: dict[str, str] = {}
        self._trigger: TrainingTrigger

    def submit(self) -> str:
        """Run the task until it is deferred; return the name of the job that it waits for."""
        try:
            self._operator().execute(self._context())
        except TaskDeferred as deferral:
            _, arguments = deferral.trigger.serialize()
        self._trigger = TrainingTrigger(**json.loads(json.dumps(arguments)))
        self._trigger._log = logging.getLogger("task")  # type: ignore[assignment]  # as above
        self.workload = self._trigger.workload
        return self.workload["name"]

    def wait(self) -> dict[str, Any]:
        """Wait for the end of the job; return the trigger's event."""

        async def first() -> dict[str, Any]:
            (event,) = [dict(event.payload) async for event in self._trigger.run()]
            return event

        return asyncio.run(first())

    def waiting(self) -> Future[dict[str, Any]]:
        """Wait aside, in a thread that no test that fails needs to wait for."""
        event: Future[dict[str, Any]] = Future()

        def work() -> None:
            try:
                event.set_result(self.wait())
            except BaseException as error:
                event.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return event

    def kill(self) -> None:
        """End the wait as a triggerer does where a user has marked the task ``failed``."""

        async def state() -> str:
            return "failed"

        self._trigger._task_state = state  # type: ignore[method-assign]  # there is no Airflow to ask
        asyncio.run(self._trigger.on_kill())

    def complete(self, event: dict[str, Any]) -> dict[str, Any]:
        """Run the task from there to its end, and what Airflow calls after a success; return its result."""
        operator, context = self._operator(), self._context()
        result = operator.execute_complete(context, event)
        for callback in operator.on_success_callback:
            callback(context)
        return result

    def finish(self) -> dict[str, Any]:
        """Do both; return the result."""
        return self.complete(self.wait())

    def _operator(self) -> LoRAOperator:
        return _Operator(task_id=self.ti.task_id, dag=DAG(self.ti.dag_id, schedule=None), **self._arguments)

    def _context(self) -> Any:
        return {"ti": self.ti, "run_id": self.ti.run_id, "dag": None, "outlet_events": {}}


class Tries:
    """One task instance.

    :param run_id: of its DAG run.
    :param arguments: of the operator.
    """

    def __init__(self, run_id: str, arguments: dict[str, Any]) -> None:
        self._run_id, self._arguments = run_id, arguments
        self._number, self._max_tries = 0, RETRIES

    def next(self, *, cleared: bool = False, **changes: Any) -> Try:
        """Return the next try.

        :param cleared: a user has cleared the task before.
        :param changes: of the arguments, which hold from now on.
        """
        if cleared:
            self._max_tries = self._number + RETRIES
        self._number += 1
        self._arguments = self._arguments | changes
        return self.again(str(uuid.uuid4()))

    def again(self, ti_id: str) -> Try:
        """Return another process of the try that was the last.

        :param ti_id: Airflow's id of it.
        """
        pushed: dict[str, Any] = {}
        ti = SimpleNamespace(
            dag_id="tries",
            run_id=self._run_id,
            task_id="train",
            map_index=-1,
            try_number=self._number,
            id=ti_id,
            max_tries=self._max_tries,
            task=SimpleNamespace(retries=RETRIES),
            xcom_push=lambda key, value: pushed.update({key: value}),
            get_task_states=lambda *_, **__: {self._run_id: {"train": "success"}},
        )
        made = Try(ti, self._arguments)
        made.xcom = pushed
        return made


# Fixtures, for the modules that import them.


@pytest.fixture
def run_id() -> str:
    return f"run-{next(_ids)}"


@pytest.fixture
def program(cluster: Cluster, namespace: str, run_id: str) -> StandIn:
    """What runs in the pods of this test."""
    return StandIn(cluster.work_dir / namespace / "work", run_id)


@pytest.fixture(params=LAUNCHERS)
def tries(
    request: pytest.FixtureRequest,
    namespace: str,
    account: Path,
    connect: Callable[..., None],
    run_id: str,
    program: StandIn,
    launched: dict[str, dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> Tries:
    """The tries of the task of this test."""
    connect(account)
    caplog.set_level(logging.INFO, "task")
    return Tries(run_id, {"namespace": namespace, **program.arguments, **launched[request.param]})


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    """All lines of the task log."""
    return lambda: "\n".join(record.getMessage() for record in caplog.records if record.name == "task")


@pytest.fixture
def jobs(observed: Observer, run_id: str) -> Jobs:
    """The names of the jobs that there are for the task."""
    return lambda: observed.jobs(run_id)


@pytest.fixture
def running(observed: Observer, program: StandIn, wait: Callable[..., Any]) -> Running:
    """Wait until the program of a job's pod runs; return the pod's name."""

    def begun(job: str) -> list[str]:
        return [pod for pod in observed.pods(job, phase="Running") if program.has_begun(pod)]

    return lambda job: wait(lambda: begun(job), f"pod of {job}")[0]
