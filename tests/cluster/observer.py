"""What an administrator sees of a namespace in which tasks train."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.cluster.bed.cluster import Cluster

OURS = "airflow-provider-finetune"


class Observer:
    """What an administrator sees of a namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def get(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        answer = self.cluster.kubectl("get", kind, f"--namespace={self.namespace}", "--output=json", *arguments)
        items: list[dict[str, Any]] = json.loads(answer)["items"]
        return items

    def workloads(self) -> list[dict[str, Any]]:
        """All TrainJobs, and all pods that are workloads of their own."""
        return [*self.get("trainjobs"), *self.get("pods", f"--selector={OURS}/whole")]

    def workload(self, name: str) -> dict[str, Any]:
        (found,) = [job for job in self.workloads() if job["metadata"]["name"] == name]
        return found

    def resource(self, name: str) -> str:
        """What kubectl calls a workload."""
        return f"{self.workload(name)['kind'].lower()}/{name}"

    def jobs(self, run_id: str) -> list[str]:
        """The names of the workloads of a run, without pods of their own that are being deleted."""
        found = [(job["kind"], job["metadata"]) for job in self.workloads()]
        there = [job for kind, job in found if kind != "Pod" or "deletionTimestamp" not in job]
        return [job["name"] for job in there if job.get("annotations", {}).get(f"{OURS}/run_id") == run_id]

    def pods(self, *jobs: str, phase: str | None = None) -> list[str]:
        """The names of the pods of some jobs, whether these are still there or not."""
        found = self.get("pods", f"--selector={OURS}/job in ({', '.join(jobs)})")
        return [pod["metadata"]["name"] for pod in found if phase in (None, pod["status"]["phase"])]

    def deleting(self, pod: str) -> bool:
        """Whether a pod is there and to be ended."""
        found = self.get("pods", f"--field-selector=metadata.name={pod}")
        return bool(found) and "deletionTimestamp" in found[0]["metadata"]

    def is_complete(self, job: str) -> bool:
        status = self.workload(job).get("status", {})
        ended = "Complete" in [condition["type"] for condition in status.get("conditions", [])]
        return ended or status.get("phase") == "Succeeded"

    def counter(self, name: str, **labels: str) -> int:
        """The sum of a counter of the API server, of those entries that have these labels."""
        entries = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", self.cluster.kubectl("get", "--raw=/metrics"), re.MULTILINE)
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        return round(sum(float(value) for found, value in entries if wanted <= set(found.split(","))))

    def watches(self) -> tuple[int, int]:
        """How many watches there are on the jobs and on the pods of any one namespace."""
        name, common = "apiserver_longrunning_requests", {"verb": "WATCH", "scope": "namespace"}
        return self.counter(name, resource="trainjobs", **common), self.counter(name, resource="pods", **common)

    def requests(self, account: str) -> int:
        """How many requests an account has made."""
        flow = f"{account}-{self.namespace}"
        return self.counter("apiserver_flowcontrol_dispatched_requests_total", flow_schema=flow)

    def let_go(self, job: str) -> None:
        """Admit a job, as its queue does."""
        merge = ("--type=merge", '--patch={"spec": {"suspend": false}}')
        self.cluster.kubectl("patch", "trainjob", job, f"--namespace={self.namespace}", *merge)
