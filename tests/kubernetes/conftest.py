"""An API server that answers what a test tells it, over real HTTP, and connections that lead to it.

kmock records and answers; it is served without its own ``Server``, which would patch aiohttp, our client, in passing.
It runs in a thread with an event loop of its own, so that a test calls the hook by ``asyncio.run`` as a worker does.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kmock
import pytest
from aiohttp.test_utils import RawTestServer

from airflow_provider_finetune.cluster import making
from airflow_provider_finetune.cluster.hook import TrainingHook

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs"
RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"
CORE = "/api/v1/namespaces/ml"
TOKEN = "token-of-the-test"


def status(code: int, reason: str, message: str, **details: Any) -> tuple[int, dict[str, Any]]:
    """A refusal as the API server writes it."""
    more = {"details": details} if details else {}
    return code, {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, **more}


class ApiServer:
    """``answer`` tells what is answered, ``requests`` what was asked; anything else is 404 as for an unknown path."""

    def __init__(self) -> None:
        self.handler = kmock.RawHandler()
        self.url = ""
        self.tokens: set[str] | None = None
        self.handler.fallback << 404 << b"404 page not found\n"
        self.handler[self._is_unknown] ** 100 << (lambda: _response(*status(401, "Unauthorized", "Unauthorized")))

    def _is_unknown(self, request: kmock.Request) -> bool:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.tokens is not None and token not in self.tokens

    def answer(self, what: str, *answers: Any, headers: dict[str, str] | None = None) -> None:
        """Answer ``what``, such as ``"get /path"``, by each in turn and then always by the last.

        An answer is JSON, bytes, a stream (tuple), a status with either, or a function of the request.
        """
        left = list(answers)

        def reply(request: kmock.Request) -> Any:
            found = left.pop(0) if len(left) > 1 else left[0]
            found = found(request) if callable(found) else found
            code, payload = found if isinstance(found, tuple) and isinstance(found[0], int) else (200, found)
            return _response(code, payload, headers)

        self.handler[what] << reply

    @property
    def requests(self) -> list[kmock.Request]:
        return list(self.handler)

    @property
    def asked(self) -> list[str]:
        """Method and path of each request."""
        return [f"{request.method.value} {request.url.path}" for request in self.requests]


def _response(code: int, payload: Any, headers: dict[str, str] | None = None) -> Any:
    return kmock.Response(status=code, payload=payload, headers=headers)  # type: ignore[attr-defined]  # not in __all__


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server, loop, started, stop = ApiServer(), asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with server.handler, RawTestServer(server.handler, host="127.0.0.1") as http:
            server.url = str(http.make_url("")).rstrip("/")
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def kubeconfig(api: ApiServer, tmp_path: Path) -> Callable[..., Path]:
    """Write a kubeconfig that leads to the server; keyword arguments are further settings of the cluster."""

    def write(*, token: str = TOKEN, user: dict[str, Any] | None = None, **cluster: Any) -> Path:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": api.url, **cluster}}],
            "users": [{"name": "test", "user": user or {"token": token}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return write


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Define the connection ``cluster`` by its settings."""

    def define(conn_id: str = "cluster", **extra: Any) -> None:
        document = {"conn_type": "kubernetes", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(document))

    return define


@pytest.fixture
def call(
    kubeconfig: Callable[..., Path], connection: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[TrainingHook], Any]], Any]:
    """Run a coroutine function with a hook of namespace ``ml`` whose connection leads to the server."""
    monkeypatch.setattr(making, "_trainer_api", {})  # each test is a new process
    connection(kube_config_path=str(kubeconfig()))

    def run(use: Callable[[TrainingHook], Any], *, pauses: tuple[float, ...] = ()) -> Any:
        async def inside() -> Any:
            async with TrainingHook("cluster", "ml", pauses=pauses) as hook:
                return await use(hook)

        return asyncio.run(inside())

    return run
