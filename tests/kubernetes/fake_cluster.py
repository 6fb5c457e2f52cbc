"""An API server of TrainJobs and pods over HTTP: list, watch, logs, events, deletion; and objects as it has them.

A real server beside kmock, whose emulator has neither resource versions nor pages, bookmarks and expired watches, and
cannot stop and come back on the same port: what a watch has to live with.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from typing import Any

from aiohttp import web

from airflow_provider_finetune.launchers.observed import (
    DOMAIN,
    IDENTITY,
    JOB,
    MANAGED_BY,
    RANK,
    RUNS_ONCE,
    TRY_NUMBER,
    WHOLE,
)

NAMESPACE = "ml"
_KINDS = ("trainjobs", "pods", "workloads")


def at(seconds_ago: float) -> str:
    """A time as the API writes it."""
    return f"{datetime.now(timezone.utc) - timedelta(seconds=seconds_ago):%Y-%m-%dT%H:%M:%SZ}"


def condition(kind: str, seconds_ago: float = 0, value: str = "True", **more: str) -> dict[str, str]:
    return {"type": kind, "status": value, "lastTransitionTime": at(seconds_ago), **more}


def train_job(
    name: str, *conditions: dict[str, str], age: float = 0, suspend: bool = False, **status: Any
) -> dict[str, Any]:
    labels = {MANAGED_BY: DOMAIN, IDENTITY: f"i-{name}", WHOLE: "w"}
    annotations = {RUNS_ONCE: "true", TRY_NUMBER: "1"}
    metadata = {"name": name, "uid": f"uid-{name}", "labels": labels, "annotations": annotations}
    return {
        "metadata": {**metadata, "creationTimestamp": at(age)},
        "spec": {"suspend": suspend},
        "status": {"conditions": list(conditions), **status} if conditions or status else {},
    }


def pod(
    job: str,
    state: dict[str, Any] | None = None,
    *conditions: dict[str, str],
    rank: int = 0,
    age: float = 0,
    suffix: str = "abc",
    phase: str = "Running",
    **container: Any,
) -> dict[str, Any]:
    name = f"{job}-node-0-{rank}-{suffix}"
    labels = {MANAGED_BY: DOMAIN, JOB: job, RANK: str(rank)}
    shown = [{"name": "node", "state": state, **container}] if state else []
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, "creationTimestamp": at(age)},
        "spec": {"nodeName": "node1"},
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": shown},
    }


def own_pod(
    name: str,
    state: dict[str, Any] | None = None,
    *conditions: dict[str, str],
    age: float = 0,
    phase: str = "Running",
    gated: bool = False,
    **container: Any,
) -> dict[str, Any]:
    """A pod that is a workload of its own."""
    labels = {MANAGED_BY: DOMAIN, IDENTITY: f"i-{name}", WHOLE: "w", JOB: name}
    shown = [{"name": "base", "state": state, **container}] if state else []
    metadata = {"name": name, "uid": f"uid-{name}", "labels": labels, "annotations": {TRY_NUMBER: "1"}}
    return {
        "metadata": {**metadata, "creationTimestamp": at(age)},
        "spec": {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]} if gated else {"nodeName": "node1"},
        "status": {
            "phase": phase if state or phase != "Running" else "Pending",
            "conditions": list(conditions),
            "containerStatuses": shown,
        },
    }


def running(seconds_ago: float = 0) -> dict[str, Any]:
    return {"running": {"startedAt": at(seconds_ago)}}


def terminated(code: int = 0, words: str = "", reason: str = "", ago: float = 0, ran: float = 10) -> dict[str, Any]:
    end = {"startedAt": at(ago + ran), "finishedAt": at(ago), "exitCode": code, "message": words}
    return {"terminated": {**end, "reason": reason or ("Error" if code else "Completed")}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def event(kind: str, name: str, reason: str, message: str, uid: str = "", ago: float = 0) -> dict[str, Any]:
    about = {"kind": kind, "name": name, "uid": uid}
    return {"involvedObject": about, "reason": reason, "message": message, "metadata": {}, "eventTime": at(ago)}


def _fits(labels: dict[str, str], wanted: list[tuple[str, str, str]]) -> bool:
    return all(name in labels and (not equals or labels[name] == value) for name, equals, value in wanted)


class FakeCluster:
    """``async with FakeCluster() as cluster``; everything happens in the test's own event loop."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in _KINDS}
        self.events: list[dict[str, Any]] = []
        self.logs: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}  # by kind, or by verb and kind
        self.unlisted: set[str] = set()  # names that a list does not show: it is older than they are
        self.expired = 0  # how many second pages of lists are refused
        self.oldest = 0
        self._version = 100
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._watchers: set[tuple[str, asyncio.Queue[dict[str, Any] | None]]] = set()
        self._port = 0

    async def __aenter__(self) -> FakeCluster:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def connection(self) -> str:
        """The connection's JSON for an environment variable."""
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster]}
        config |= {"contexts": [context], "users": [{"name": "u", "user": {"token": "t"}}]}
        return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(config)}})

    async def start(self) -> None:
        """Listen: at first on any port, then on the same."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self.end_watches()
        await self._runner.cleanup()

    def end_watches(self) -> None:
        """End all watches as the server does after some minutes, and when it stops."""
        for _, queue in self._watchers:
            queue.put_nowait(None)

    def send(self, kind: str, change: dict[str, Any]) -> None:
        for watched, queue in self._watchers:
            if watched == kind:
                queue.put_nowait(change)

    def put(self, kind: str, thing: dict[str, Any]) -> None:
        """Make or change an object."""
        known = thing["metadata"]["name"] in self.objects[kind]
        self._version += 1
        thing = {**thing, "metadata": {**thing["metadata"], "resourceVersion": str(self._version)}}
        self.objects[kind][thing["metadata"]["name"]] = thing
        self._tell(kind, {"type": "MODIFIED" if known else "ADDED", "object": thing})

    def remove(self, kind: str, name: str) -> None:
        self._version += 1
        thing = self.objects[kind].pop(name)
        thing["metadata"]["resourceVersion"] = str(self._version)
        self._tell(kind, {"type": "DELETED", "object": thing})

    def _tell(self, kind: str, change: dict[str, Any]) -> None:
        self._history.append((self._version, kind, change))
        self.send(kind, change)

    def count(self, beginning: str) -> int:
        """How many requests began so."""
        return sum(1 for request in self.requests if request.startswith(beginning))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        parts = parts[parts.index(NAMESPACE) + 1 :]
        verb = "WATCH" if request.query.get("watch") else request.method
        self.requests.append(f"{verb} {'/'.join(parts)}")
        refused = self.refuse.get(parts[0]) or self.refuse.get(f"{verb} {parts[0]}")
        if refused:
            code, message = refused
            return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)
        if verb == "WATCH":
            return await self._watch(request, parts[0])
        if parts[-1] == "log":
            lines = self.logs.get(parts[1], [])[-int(request.query["tailLines"]) :]
            return web.Response(text="".join(f"{line}\n" for line in lines))
        if parts[0] == "events":
            name = request.query["fieldSelector"].split("=")[1]
            return web.json_response({"items": [e for e in self.events if e["involvedObject"]["name"] == name]})
        return await self._object(request, parts) if len(parts) > 1 else self._list(request, parts[0])

    def _list(self, request: web.Request, kind: str) -> web.Response:
        wanted = [label.partition("=") for label in request.query["labelSelector"].split(",")]
        found = [thing for name, thing in self.objects[kind].items() if name not in self.unlisted]
        things = [thing for thing in found if _fits(thing["metadata"]["labels"], wanted)]
        if "continue" in request.query and self.expired:
            self.expired -= 1
            body = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            return web.json_response(body, status=410)
        begin, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", len(things)))
        more = {"continue": str(begin + limit)} if begin + limit < len(things) else {}
        metadata = {"resourceVersion": str(self._version), **more}
        return web.json_response({"metadata": metadata, "items": things[begin : begin + limit]})

    async def _object(self, request: web.Request, parts: list[str]) -> web.Response:
        thing = self.objects[parts[0]].get(parts[1])
        if thing is None:
            details = {"kind": parts[0], "name": parts[1]}
            body = {"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found", "details": details}
            return web.json_response(body, status=404)
        if request.method == "DELETE":
            options = await request.json()
            assert options["propagationPolicy"] == "Background"
            assert options["preconditions"]["uid"] == thing["metadata"]["uid"]
            self.remove(*parts)
            for name in [
                name for name, one in self.objects["pods"].items() if one["metadata"]["labels"][JOB] == parts[1]
            ]:
                self.remove("pods", name)
        return web.json_response(thing)

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        since = int(request.query["resourceVersion"])
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        if since < self.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old resource version: {since}"}
            queue.put_nowait({"type": "ERROR", "object": gone})
            queue.put_nowait(None)
        for version, of, change in self._history:
            if version > since and of == kind:
                queue.put_nowait(change)
        watcher = (kind, queue)
        self._watchers.add(watcher)
        try:
            while told := await queue.get():
                await response.write(json.dumps(told).encode() + b"\n")
        finally:
            self._watchers.discard(watcher)
        return response
