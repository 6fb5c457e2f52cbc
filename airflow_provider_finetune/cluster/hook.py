"""``TrainingHook``: what a training asks of a cluster. Asynchronous; a worker calls it by ``asyncio.run``."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow_provider_finetune.cluster.asked import asked
from airflow_provider_finetune.cluster.client import REQUEST_SECONDS, ClusterClient
from airflow_provider_finetune.cluster.echoes import sent_values
from airflow_provider_finetune.cluster.logs import LogTail
from airflow_provider_finetune.cluster.refusals import Refused
from airflow_provider_finetune.launchers.kinds import KINDS, TRAINJOB, Kind
from airflow_provider_finetune.launchers.observed import FOLLOWER, TRY_NUMBER, is_silent

API = "/apis/trainer.kubeflow.org/v1alpha1"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LOG_BYTES = 65536
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
PAGE = 100
"""Objects in one answer of a list."""

WATCH_SECONDS = (300, 600)
"""How long one watch lasts, at random between these, so that those of many triggerers do not end together."""

SILENT_SECONDS = 150.0
"""How long nothing may come of a watch: a bookmark comes once a minute, and a connection may break without a word."""

_PODS_POLL_SECONDS = (0.5, 5.0)
_ENDED = ("Succeeded", "Failed")
_GONE = ("not_found", "conflict")


@dataclass(frozen=True)
class Workload:
    """Reference to a workload, of JSON values only: it travels in a trigger.

    * ``kind``: ``"trainjob"`` or ``"pod"``
    * ``conn_id``, ``namespace``, ``name``, ``uid``: where and which it is
    """

    kind: str
    conn_id: str
    namespace: str
    name: str
    uid: str

    @property
    def title(self) -> str:
        """What sentences call it."""
        return KINDS[self.kind].title


class TrainingHook:
    """The requests of trainings of one kind in one namespace of one cluster.

    Used as ``async with TrainingHook(…) as hook``: one client stays open meanwhile. Every method raises
    :class:`~airflow_provider_finetune.cluster.refusals.Refused` where the cluster refuses or does not answer, after
    some further attempts where the cause may pass.

    :param conn_id: connection of the cncf.kubernetes provider.
    :param namespace: ``None`` is the connection's, else the pod's own, else ``"default"``.
    :param kind: what a job is here: a TrainJob, or a pod of its own.
    :param pauses: seconds before each further attempt of a request that fails for a passing cause.
    """

    def __init__(
        self,
        conn_id: str,
        namespace: str | None = None,
        *,
        kind: Kind = TRAINJOB,
        pauses: Sequence[float] = (1.0, 3.0),
    ) -> None:
        self.conn_id, self.kind = conn_id, kind
        self._namespace = namespace
        self._client = ClusterClient(conn_id, pauses)

    async def __aenter__(self) -> TrainingHook:
        await self._client.open()
        if not self._namespace:
            self._namespace = str(self._client.extras.get("namespace") or _own_namespace() or "default")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def of(self, kind: Kind) -> TrainingHook:
        """Return the same for trainings of another kind; it ends with this one.

        :param kind: what a job is there.
        """
        other = TrainingHook(self.conn_id, self.namespace, kind=kind)
        other._client = self._client
        return other

    @property
    def namespace(self) -> str:
        """Where the training runs; known once the hook is entered."""
        if not self._namespace:
            raise RuntimeError("The namespace is known once the hook is entered")
        return self._namespace

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        timeout: float = REQUEST_SECONDS,
    ) -> dict[str, Any]:
        """Return the JSON of an answer.

        :param method: HTTP method.
        :param path: path below the server's address, quoted.
        :param query: parameters after it.
        :param body: JSON; that of a ``PATCH`` is a merge patch.
        :param timeout: seconds for the whole of it.
        """
        name = (body.get("metadata") or {}).get("name") if method == "POST" else None
        what = asked(self.conn_id, method, path, name=name, secrets=sent_values(body))
        return await self._client.request(what, method, path, query=query, body=body, timeout=timeout)

    async def list_jobs(self, selector: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the jobs with these labels.

        :param selector: label and value of each.
        """
        return await self._items(
            self.kind.resource, {"labelSelector": _selector({**selector, **dict(self.kind.selector)})}
        )

    async def job(self, name: str) -> dict[str, Any] | None:
        """Return a job, or ``None`` where there is none of this name.

        :param name: its name.
        """
        return await self._maybe(self.path(self.kind.resource, name))

    async def runtime(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return a training runtime, or ``None`` where the connection has no right to read it.

        :param kind: ``ClusterTrainingRuntime`` or ``TrainingRuntime``.
        :param name: its name.
        :raises Refused: e.g. there is none of this name.
        """
        whole_cluster = f"{API}/clustertrainingruntimes/{quote(name, safe='')}"
        path = whole_cluster if kind == "ClusterTrainingRuntime" else self.path("trainingruntimes", name)
        try:
            return await self.request("GET", path)
        except Refused as error:
            if error.status != 403:
                raise
        return None

    async def delete_job(self, name: str, uid: str) -> None:
        """Delete a job and let its pods end; one that is gone, or another of its name, is left alone.

        In the background: with ``Foreground`` Trainer 2.3 starts the user's program again and again.

        :param name: its name.
        :param uid: that it must have.
        """
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        body = {"kind": "DeleteOptions", "apiVersion": "v1", **options}
        await self._unless_gone(self.request("DELETE", self.path(self.kind.resource, name), body=body))

    async def end_job(self, name: str, uid: str, follower: str) -> bool:
        """Delete a job as :meth:`delete_job` does, unless another try waits for it by now; return whether none does.

        A worker that hung, was missed and goes on would else end what the next try has taken over.

        :param name: its name.
        :param uid: that it must have.
        :param follower: Airflow's id of the try that ends.
        """
        annotations = ((await self.job(name) or {}).get("metadata") or {}).get("annotations") or {}
        if annotations.get(FOLLOWER, follower) != follower:
            return False
        await self.delete_job(name, uid)
        return True

    async def mark(self, name: str, uid: str, annotation: str, value: str = "true") -> None:
        """Note something on a job; one that is gone is left alone.

        :param name: its name.
        :param uid: that it must have.
        :param annotation: :data:`~airflow_provider_finetune.launchers.observed.DELIVERED` or another one of ours.
        :param value: of the annotation.
        """
        body = {"metadata": {"uid": uid, "annotations": {annotation: value}}}
        await self._unless_gone(self.request("PATCH", self.path(self.kind.resource, name), body=body))

    async def pods(self, selector: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the pods with these labels, also of TrainJobs that have been deleted.

        :param selector: label and value of each.
        """
        return await self._items("pods", {"labelSelector": _selector(selector)})

    async def pods_that_stay(self, selector: Mapping[str, str], timeout: float) -> list[str]:
        """Wait until no pod with these labels can write any more, and return which still may, each in words.

        This is what the API knows: on a node that is cut off from it a program may go on.

        :param selector: label and value of each.
        :param timeout: seconds.
        """
        end = asyncio.get_running_loop().time() + timeout
        pause, longest = _PODS_POLL_SECONDS
        while stay := [_named(pod) for pod in await self.pods(selector) if _can_write(pod)]:
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, longest)
        return stay

    async def log_tail(self, pod_name: str, *, lines: int, limit_bytes: int = LOG_BYTES) -> LogTail:
        """Return the last lines of what the container that trains says; none before its program has begun.

        The server's own ``limitBytes`` cuts off the end, which is what matters. So the last bytes of what comes are
        kept, and where four times as much has come the rest is not waited for: the lines are that long.

        :param pod_name: the pod.
        :param lines: how many at most.
        :param limit_bytes: how much is kept at most.
        :raises Refused: e.g. the right to read logs is missing.
        """
        path = f"{self.path('pods', pod_name)}/log"
        query = {"container": self.kind.container, "tailLines": str(lines), "timestamps": "true"}
        tail, read = b"", 0
        try:
            async with self._client.answer(asked(self.conn_id, "GET", path), "GET", path, query=query) as answer:
                async for chunk in answer.content.iter_any():
                    read += len(chunk)
                    tail = (tail + chunk)[-limit_bytes:]
                    if read >= 4 * limit_bytes:
                        break
        except Refused as error:
            # 400: the container waits to start, or for its image; 404: the pod has gone.
            if error.status in (400, 404):
                return LogTail([], whole=True)
            raise
        found = tail.decode(errors="replace").splitlines()
        if read > limit_bytes:
            return LogTail(found[1:], whole=False)
        return LogTail(found, whole=len(found) < lines)

    async def events(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the events of some objects, oldest first. A TrainJob's name is that of its JobSet too.

        :param names: names of objects of any kind.
        """
        found = [
            event
            for name in dict.fromkeys(names)
            for event in await self._items("events", {"fieldSelector": f"involvedObject.name={name}"})
        ]
        return sorted(found, key=_time_of)

    async def queue_conditions(self, uid: str) -> list[dict[str, Any]]:
        """Return the conditions of the object in which Kueue keeps a job; none without Kueue, or the right to read it.

        :param uid: of the job.
        """
        for version in KUEUE_VERSIONS:
            path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{quote(self.namespace, safe='')}/workloads"
            try:
                found = await self.request("GET", path, query={"labelSelector": f"kueue.x-k8s.io/job-uid={uid}"})
            except Refused:
                continue
            return [one for item in found.get("items") or () for one in item.get("status", {}).get("conditions") or ()]
        return []

    async def list_raw(self, resource: str, selector: Mapping[str, str | None], after: str = "") -> dict[str, Any]:
        """Return a page of a list; its ``metadata.resourceVersion`` is where a watch goes on.

        In pages, as a thousand pods are 10 MB of JSON, for which a triggerer's event loop would stand still.

        :param resource: ``trainjobs`` or ``pods``.
        :param selector: label and value of each, ``None`` for any.
        :param after: ``metadata.continue`` of the page before, where there is one.
        """
        query = {"labelSelector": _selector(selector), "limit": str(PAGE), **({"continue": after} if after else {})}
        return await self.request("GET", self.path(resource), query=query)

    async def watch(
        self, resource: str, selector: Mapping[str, str | None], resource_version: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield changes as the server tells them, bookmarks and ``ERROR`` events included, until it ends the watch.

        The end is ordinary: it comes after some minutes, or when the server stops.

        :param resource: ``trainjobs`` or ``pods``.
        :param selector: label and value of each, ``None`` for any.
        :param resource_version: after which.
        :yields: events as dicts with ``type`` and ``object``.
        :raises Refused: the watch is refused, or the connection breaks.
        """
        seconds = random.randint(*WATCH_SECONDS)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": _selector(selector),
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        path, rest = self.path(resource), b""
        what = asked(self.conn_id, "GET", path, watch=True)
        limits = {"timeout": seconds + 30, "silence": SILENT_SECONDS}
        async with self._client.answer(what, "GET", path, query=query, **limits) as answer:
            # Not readline(): an object may be longer than what that holds.
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield json.loads(line)

    async def _items(self, resource: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        return list((await self.request("GET", self.path(resource), query=query)).get("items") or ())

    async def _maybe(self, path: str) -> dict[str, Any] | None:
        try:
            return await self.request("GET", path)
        except Refused as error:
            if error.cause != "not_found":
                raise
        return None

    def path(self, resource: str, name: str | None = None) -> str:
        """Return where objects of the namespace are, or one of them.

        :param resource: their plural.
        :param name: of one.
        """
        api = API if resource in ("trainjobs", "trainingruntimes") else "/api/v1"
        path = f"{api}/namespaces/{quote(self.namespace, safe='')}/{resource}"
        return f"{path}/{quote(name, safe='')}" if name else path

    @staticmethod
    async def _unless_gone(request: Any) -> None:
        try:
            await request
        except Refused as error:
            if error.cause not in _GONE:
                raise


def _own_namespace() -> str:
    return POD_NAMESPACE.read_text(encoding="utf-8").strip() if POD_NAMESPACE.is_file() else ""


def _can_write(pod: Mapping[str, Any]) -> bool:
    metadata = pod["metadata"]
    # A label is easily copied: what is no pod of a job and lacks the annotation of one of its own is somebody else's.
    is_ours = metadata.get("ownerReferences") or TRY_NUMBER in (metadata.get("annotations") or {})
    return bool(is_ours) and (pod.get("status") or {}).get("phase") not in _ENDED


def _named(pod: Mapping[str, Any]) -> str:
    name: str = pod["metadata"]["name"]
    return f"{name} (its node {pod['spec']['nodeName']} does not answer)" if is_silent(pod) else name


def _selector(labels: Mapping[str, str | None]) -> str:
    return ",".join(name if value is None else f"{name}={value}" for name, value in labels.items())


def _time_of(event: Mapping[str, Any]) -> str:
    """Return when an event was last seen; which field tells depends on the controller that wrote it."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
