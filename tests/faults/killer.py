"""Kills processes at random moments and brings each back, as whatever supervises them would; now and then one hangs."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil

from tests.cluster.airflow_deployment import AirflowDeployment
from tests.cluster.bed.cluster import Cluster

CLUSTER = ("kube-apiserver", "kube-controller-manager", "jobset", "trainer", "kubelet")
PAUSE = (6.0, 14.0)
"""Seconds between two kills: at random between these."""

_DOWN = (0.2, 4.0)
"""Seconds until a process of the cluster is started again."""


class Killer:
    """Kills while its context lasts, in a thread of its own; what it has killed lives again at its end.

    :param seed: of order and moments.
    :param cluster: whose processes.
    :param airflow: whose triggerer and workers.
    :param pause: seconds between two kills.
    :param hangs: a worker also hangs until it is missed, and goes on then.
    """

    def __init__(
        self,
        seed: int,
        cluster: Cluster,
        airflow: AirflowDeployment,
        pause: tuple[float, float] = PAUSE,
        *,
        hangs: bool = True,
    ) -> None:
        self.kills: Counter[str] = Counter()
        self._random, self._pause = random.Random(f"{seed} kills"), pause
        self._cluster, self._airflow = cluster, airflow
        self._hangs = hangs
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error

    def _run(self) -> None:
        kills: Mapping[str, Callable[[], bool]] = {
            **{name: lambda name=name: self._kill_in_cluster(name) for name in CLUSTER},  # type: ignore[misc]
            "triggerer": self._kill_triggerer,
            "worker": lambda: self._strike_worker(self._airflow.kill_worker_of),
            **({"worker hangs": lambda: self._strike_worker(self._airflow.hang_worker_of)} if self._hangs else {}),
        }
        turn: list[str] = []
        try:
            while not self._stop.wait(self._random.uniform(*self._pause)):
                # Each once before any is killed again, so that a short run has them all.
                turn = turn or self._random.sample(sorted(kills), len(kills))
                name = turn.pop()
                if kills[name]():
                    self.kills[name] += 1
        except BaseException as error:
            self._error = error

    def _kill_in_cluster(self, name: str) -> bool:
        self._cluster.kill(name)
        time.sleep(self._random.uniform(*_DOWN))
        self._cluster.revive(name)
        return True

    def _kill_triggerer(self) -> bool:
        self._airflow.stop_triggerer(kill=True)
        self._airflow.start_triggerer()
        return True

    def _strike_worker(self, strike: Callable[..., None]) -> bool:
        """Strike the worker of a task that runs; whether there was one."""
        running = self._airflow.running()
        if not running:
            return False
        # It may have ended since it was asked for.
        with suppress(psutil.NoSuchProcess, AssertionError):
            strike(*self._random.choice(running))
            return True
        return False
