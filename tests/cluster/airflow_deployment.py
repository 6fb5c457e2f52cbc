"""A whole Airflow on this machine, for what ``dag.test()`` cannot stand for: scheduler with LocalExecutor, API server,
DAG processor and triggerer, each a process of its own.

It is the Airflow of the interpreter that runs the tests, with SQLite in a folder of its own; every API caller is admin.
Tests speak to it as a user does, by its REST API.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

REPOSITORY = Path(__file__).parents[2]
COMPONENTS = {
    "api-server": [],
    "scheduler": ["--skip-serve-logs"],
    "dag-processor": [],
    "triggerer": ["--skip-serve-logs"],
}
FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}
# What an entry of a task's log tells beside its message: whose it is and where in the code it comes from.
ORIGIN = {"dag_id", "run_id", "task_id", "map_index", "try_number", "ti_id", "filename", "lineno", "logger"}

# Short where a test waits for it; what is set to an hour would only cost CPU.
SETTINGS = {
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
    "CORE__MIN_SERIALIZED_DAG_FETCH_INTERVAL": "0",
    "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "API__HOST": "127.0.0.1",
    "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",  # a file that has changed is read at once
    "DAG_PROCESSOR__PRINT_STATS_INTERVAL": "0",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "1",
    # The API server takes two connections for a task that starts: of 5 + 10, many at once lock each other out for 30 s.
    "DATABASE__SQL_ALCHEMY_POOL_SIZE": "64",
    "LOGGING__COLORED_CONSOLE_LOG": "False",
    "LOGGING__TRIGGER_LOG_SERVER_PORT": "1",  # no log servers: the API server reads the files themselves
    "LOGGING__WORKER_LOG_SERVER_PORT": "1",
    "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3600",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",  # how long a worker that was killed passes for alive
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",  # how long a triggerer that was killed keeps its triggers
    "WORKERS__EXECUTION_API_TIMEOUT": "60",
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",  # how soon a running task learns that it was marked
}


class AirflowDeployment:
    """A running Airflow, from entering the context to leaving it.

    :param home: an empty folder: ``AIRFLOW_HOME``. What the components and tasks log stays below ``logs`` in it.
    :param environment: more for the environment of every process, connections for instance.
    :param triggerers: what the triggerer has in its environment in place of that.
    :param parallelism: how many tasks run at the same time; a deferred one does not count. Each takes seconds of CPU
        and up to 140 MB: where many more run than there are cores, their heartbeats come too late.
    """

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str] | None = None,
        *,
        triggerers: Mapping[str, str] | None = None,
        parallelism: int = 6,
    ) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        settings = {
            **SETTINGS,
            "API__BASE_URL": self.url,
            "API__PORT": self.url.rpartition(":")[2],
            "API__SECRET_KEY": secrets.token_hex(16),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "CORE__DAGS_FOLDER": str(home / "dags"),
            "CORE__PARALLELISM": str(parallelism),
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db?timeout=60",
        }
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        self._environment |= {f"AIRFLOW__{name}": value for name, value in settings.items()}
        self._environment |= {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
        self._environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | dict(environment or {})
        self._triggerers = dict(triggerers or {})
        self._frozen: subprocess.Popen[bytes] | None = None
        self._components: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()
        self._http = httpx.Client(base_url=f"{self.url}/api/v2", timeout=60, trust_env=False)

    def __enter__(self) -> AirflowDeployment:
        (self.home / "dags").mkdir()
        (self.home / "logs").mkdir()
        try:
            migration = self._spawn("db-migrate", ["db", "migrate"])
            if migration.wait(120) != 0:
                raise AssertionError(f"airflow db migrate failed: {self._tail('db-migrate')}")
            for name in COMPONENTS:
                self._start(name)
            self._wait_until_healthy(datetime.now(timezone.utc), COMPONENTS)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def write_dag(self, name: str, source: str, timeout: float = 60) -> None:
        """Write the file of DAG ``name``, the first time or anew, and wait until it is in the database.

        Where the file cannot be imported this fails with its traceback.
        """
        file = self.home / "dags" / f"{name}.py"
        draft = file.with_suffix(".draft")
        draft.write_text(textwrap.dedent(source), encoding="utf-8")
        written = datetime.now(timezone.utc)
        draft.replace(file)  # at once: nobody reads half a file

        def is_read() -> bool:
            for error in self._call("GET", "/importErrors", params={"order_by": "-timestamp"})["import_errors"]:
                if error["filename"].endswith(file.name) and _time(error["timestamp"]) > written:
                    raise AssertionError(f"{file.name} cannot be imported: {error['stack_trace']}")
            answer = self._http.get(f"/dags/{name}")
            return answer.status_code == 200 and _time(answer.json()["last_parsed_time"]) > written

        _wait(is_read, timeout, lambda: f"DAG {name} is not in the database: {self._tail('dag-processor')}")

    def run(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run of a DAG; return its id."""
        run_id = f"run_{secrets.token_hex(4)}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
        self._call("POST", f"/dags/{dag_id}/dagRuns", json=body)
        return run_id

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """A task instance as the API tells it: ``state``, ``try_number``, ``pid``, ``trigger`` and others."""
        return self._call("GET", _instance(dag_id, run_id, task_id, map_index))

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run, a hundred at most."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        found: list[dict[str, Any]] = self._call("GET", path, params={"limit": 100})["task_instances"]
        return found

    def running(self) -> list[tuple[str, str, str, int]]:
        """DAG, run, task and map index of what runs now on a worker."""
        path, params = "/dags/~/dagRuns/~/taskInstances", {"state": "running"}
        names = ("dag_id", "dag_run_id", "task_id", "map_index")
        found = self._call("GET", path, params=params)["task_instances"]
        return [tuple(task[name] for name in names) for task in found if task["pid"]]

    def wait_for_state(
        self, dag_id: str, run_id: str, task_id: str, *states: str, map_index: int = -1, timeout: float = 90
    ) -> dict[str, Any]:
        """Wait until a task instance is in one of the states and return it; fail early where it ends in another one."""
        seen: dict[str, Any] = {}

        def describe() -> str:
            log = self.log(dag_id, run_id, task_id, seen.get("try_number") or 1, map_index) if seen else ""
            return (
                f"{dag_id}.{task_id}[{map_index}] is {seen.get('state')!r}, not {' or '.join(states)}.\n"
                f"Its log:\n{log}\nScheduler: {self._tail('scheduler')}\nTriggerer: {self._tail('triggerer')}"
            )

        def is_reached() -> bool:
            answer = self._http.get(_instance(dag_id, run_id, task_id, map_index))
            if answer.status_code == 404:  # not yet expanded
                return False
            seen.update(answer.raise_for_status().json())
            if seen["state"] in FINAL - set(states):
                raise AssertionError(describe())
            return seen["state"] in states

        _wait(is_reached, timeout, describe)
        return seen

    def wait_for_run(self, dag_id: str, run_id: str, state: str, timeout: float = 30) -> None:
        """Wait until a run is ``success`` or ``failed``, which it is a moment after its last task.

        SQLite locks no rows: a scheduler that ends a run while a task is cleared leaves that task in an ended run.
        """

        def state_now() -> str:
            return str(self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

        _wait(lambda: state_now() == state, timeout, lambda: f"{dag_id} {run_id} is {state_now()}, not {state}.")

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Mark a task instance ``success`` or ``failed``, as the button in the UI does."""
        self._call("PATCH", _instance(dag_id, run_id, task_id, map_index), json={"new_state": state})

    def clear(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        """Clear a task instance in whatever state it is, so that it runs again."""
        instance = [task_id, map_index] if map_index >= 0 else task_id
        how = {"dry_run": False, "only_failed": False, "reset_dag_runs": True}
        body = {"dag_run_id": run_id, "task_ids": [instance], **how}
        self._call("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """What a task instance has pushed."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self._call("GET", path, params={"map_index": map_index})["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try, worker's and triggerer's lines in one, each as level, message and further fields."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        params = {"map_index": map_index, "full_content": True}
        entries = self._call("GET", path, params=params, headers={"Accept": "application/json"})["content"]
        return "\n".join(_line(entry) for entry in entries)

    def end_run(self, dag_id: str, run_id: str, state: str = "failed") -> None:
        """Mark a run ``success`` or ``failed``, as the button in the UI does; its tasks that wait or run are failed."""
        self._call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": state})

    def stop_triggerer(self, *, kill: bool = False, timeout: float = 60) -> None:
        """End the triggerer, and one beside it that has stood still.

        :param kill: let it end as on a machine that fails: its triggers wait until it is missed.
        """
        frozen, self._frozen = self._frozen, None
        for process in (self._components["triggerer"], frozen):
            if process and kill:
                self._kill({process.pid})
            elif process:
                process.terminate()
            if process:
                process.wait(timeout)

    def start_triggerer(self) -> None:
        """Start another triggerer and wait until it runs."""
        self._start("triggerer")
        self._wait_until_healthy(datetime.now(timezone.utc), ["triggerer"])

    def freeze_triggerer(self) -> None:
        """Let the triggerer stand still, as on a machine that hangs, and start another one, which will miss it."""
        self._frozen = self._components["triggerer"]
        self._signal(self._frozen, signal.SIGSTOP)
        self.start_triggerer()

    def thaw_triggerer(self) -> None:
        """Let the one that stood still go on, beside the other."""
        assert self._frozen is not None
        self._signal(self._frozen, signal.SIGCONT)

    def kill_worker_of(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        """End a running task instance as a machine that fails does: its process and the worker that watches over it.

        A task instance is ``running`` before its code is read: wait for something that the code does. The scheduler
        misses the worker after about 20 seconds.
        """
        for process in self._worker_of(dag_id, run_id, task_id, map_index):
            process.kill()

    def hang_worker_of(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, *, seconds: float = 30
    ) -> None:
        """Let the worker of a running task instance stand still, as on a machine that hangs, until it is missed."""
        processes = self._worker_of(dag_id, run_id, task_id, map_index)
        for process in processes:
            process.suspend()
        time.sleep(seconds)
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _worker_of(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> list[psutil.Process]:
        worker = psutil.Process(self.task(dag_id, run_id, task_id, map_index)["pid"]).parent()
        assert worker is not None
        assert os.getsid(worker.pid) == self._components["scheduler"].pid, f"{worker} is not a worker of ours"
        return [worker, *worker.children(recursive=True)]

    def _spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with self._log_file(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                cwd=self.home,
                env=self._environment | (self._triggerers if name == "triggerer" else {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # whatever descends from it can be found, whoever its parent is by then
            )
        self._sessions.add(process.pid)
        return process

    def _start(self, name: str) -> None:
        self._components[name] = self._spawn(name, [name, *COMPONENTS[name]])

    def _wait_until_healthy(self, since: datetime, names: Collection[str], timeout: float = 120) -> None:
        def is_healthy() -> bool:
            for name in names:
                if self._components[name].poll() is not None:
                    raise AssertionError(f"The {name} has ended: {self._tail(name)}")
            try:
                health = self._call("GET", "/monitor/health")
            except httpx.TransportError:
                return False
            parts = {name.replace("-", "_") for name in names if name != "api-server"}
            beats = [health[part][f"latest_{part}_heartbeat"] for part in parts]
            return all(beat and _time(beat) > since for beat in beats)

        _wait(is_healthy, timeout, lambda: "\n".join(f"{name}: {self._tail(name)}" for name in names))

    def _stop(self) -> None:
        """Kill all at once: nobody will read the database again."""
        self._http.close()
        self._kill(self._sessions)
        for process in self._components.values():
            process.wait()

    def _signal(self, component: subprocess.Popen[bytes], what: signal.Signals) -> None:
        for process in psutil.process_iter():
            if _is_alive_in(process, {component.pid}):
                process.send_signal(what)

    def _kill(self, sessions: Collection[int]) -> None:
        while members := [process for process in psutil.process_iter() if _is_alive_in(process, sessions)]:
            for process in members:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = self._http.request(method, path, **arguments)
        assert answer.is_success, f"{method} {answer.url} answered {answer.status_code}: {answer.text}"
        body: dict[str, Any] = answer.json()
        return body

    def _log_file(self, component: str) -> Path:
        return self.home / "logs" / f"{component}.log"

    def _tail(self, component: str, lines: int = 40) -> str:
        file = self._log_file(component)
        text = file.read_text(encoding="utf-8", errors="replace")
        return "\n".join([f"the end of {file}:", *text.splitlines()[-lines:]])


def _instance(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
    return path if map_index < 0 else f"{path}/{map_index}"


def _line(entry: dict[str, Any]) -> str:
    left_out = ORIGIN | {"timestamp", "level", "event"}
    fields = [f"{name}={value}" for name, value in entry.items() if name not in left_out]
    return " ".join([entry.get("level") or "", entry["event"], *fields]).strip()


def _is_alive_in(process: psutil.Process, sessions: Collection[int]) -> bool:
    try:
        return os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _wait(condition: Callable[[], bool], timeout: float, describe: Callable[[], str]) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"After {timeout:g} seconds: {describe()}")
        time.sleep(0.2)
