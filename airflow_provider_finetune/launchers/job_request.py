"""What the objects of one training are rendered from, whichever object it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.launchers.identity import digest

QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a workload that waits in a queue of Kueue."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """All that the objects of one training are rendered from: checked, plain values.

    * ``name``: from :func:`~airflow_provider_finetune.launchers.identity.job_name`
    * ``runtime``, ``runtime_kind``: empty for a pod of its own; ``pod_operator_arguments``: empty for a TrainJob, and
      as plain JSON, of which only the hash is made
    * ``image``: ``None`` is the runtime's, or the pod template's; ``runner``: ``configmap``, ``inline`` or ``image``
    * ``labels``, ``annotations``: ours, on the job; ``user_labels``, ``user_annotations``: on job and pods
    * ``envs``: the documented parameter; ``secrets``: ``<secret name>/<key>`` by variable name
    * ``hub_cache``: directory of downloaded models
    * ``cpu``, ``memory``: quantities; ``gpus``: a number of ``gpu_resource``; all of one worker
    * ``queue_name``: Kueue local queue
    * ``kubernetes_config``: as plain JSON; ``claims``: ``volumes`` and ``volume_mounts`` beside it
    * ``deadline``: ``activeDeadlineSeconds``, counted from the creation or the admission by a queue, of a pod from its
      start on a node. A net for a training that nobody watches any more: the clocks of the trigger end it before.
      Trainer 2.1 lacks it
    """

    spec: TrainingSpec
    name: str
    namespace: str
    runtime: str = ""
    runtime_kind: str = ""
    image: str | None = None
    runner: str = "configmap"
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    user_labels: dict[str, str] = field(default_factory=dict)
    user_annotations: dict[str, str] = field(default_factory=dict)
    envs: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    hub_cache: str
    cpu: str
    memory: str
    gpus: int
    gpu_resource: str
    queue_name: str | None = None
    kubernetes_config: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    pod_operator_arguments: dict[str, Any] = field(default_factory=dict)
    deadline: int | None = None

    @property
    def whole(self) -> str:
        """Hash of the request: the value of the label :data:`WHOLE`, which rendering sets."""
        asked = asdict(self)
        for name in ("name", "namespace", "labels", "annotations", "spec"):
            del asked[name]
        # What is not asked for is left out, so that a field added later changes no hash.
        return digest({"spec": self.spec.whole_hash(), **{name: value for name, value in asked.items() if value}})
