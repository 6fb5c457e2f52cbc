"""Which words of Kubernetes mean which cause of a start that does not succeed: two tables.

The texts are those of Kubernetes 1.36, JobSet 0.12 and Trainer 2.3: only the text tells one cause from another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from airflow_provider_finetune.contract.outcome import FailureClass


@dataclass(frozen=True)
class Rule:
    """One cause.

    * ``reason``, ``text``: patterns of the whole reason, and of a part of the text in any case
    * ``failure_class``, ``cause``, ``cure``: of the :class:`Failure`; no ``cause`` marks what is to be passed over.
      Class ``user`` is what time does not mend
    * ``what``: what has happened, in words
    * ``one_node``: time mends it for a training on one node, and never for one on several
    """

    reason: str
    text: str
    failure_class: FailureClass
    cause: str
    what: str
    cure: str
    one_node: bool = False

    def fits(self, reason: str, text: str) -> bool:
        """Return whether this is the cause.

        :param reason: a single word of Kubernetes.
        :param text: the sentence with it.
        """
        return re.fullmatch(self.reason, reason) is not None and re.search(self.text, text, re.IGNORECASE) is not None


_PULL = "ErrImagePull|ImagePullBackOff|Failed|BackOff|ImageInspectError|RegistryUnavailable"
_CONFIG = "CreateContainerConfigError|Failed|FailedMount"
_REGISTRY = "Check that the nodes reach the registry; the pull is tried again all the time"
_SHARED = "Take a ReadWriteMany claim, which several nodes can mount; a training on one node may also wait"
_GPUS = "Wait for running jobs, ask for fewer (training_resource_gpu_per_worker), or add nodes that have them"

POD_RULES = (
    Rule("InvalidImageName", "", "user", "image_name", "The image's name is not valid", "Correct image="),
    Rule(
        "ErrImageNeverPull",
        "",
        "user",
        "image_missing",
        "The image is not on the node, and the runtime forbids to pull it",
        "Put the image on the nodes, or change imagePullPolicy in the runtime",
    ),
    Rule(
        _PULL,
        r"dial tcp|no such host|i/o timeout|connection re(fused|set)|TLS handshake|x509|\bEOF\b|deadline exceeded|"
        r"\b(429|50[0-4])\b|toomanyrequests",
        "infrastructure",
        "registry_unreachable",
        "The image's registry does not answer",
        _REGISTRY,
    ),
    Rule(
        _PULL,
        r"unauthorized|denied|forbidden|authentication required|authorization failed|insufficient_scope|no basic auth",
        "user",
        "image_forbidden",
        "The registry does not give the image to this namespace",
        "Correct image=, or name the secret with the registry's credentials: imagePullSecrets of the runtime, or "
        "image_pull_secrets in training_kubernetes_config",
    ),
    Rule(
        _PULL,
        r"not found|manifest unknown|name unknown|does not exist|no match for platform",
        "user",
        "image_missing",
        "The registry does not have the image",
        "Correct the name and tag in image=",
    ),
    Rule("ErrImagePull|ImagePullBackOff", "", "infrastructure", "image_pull", "The image cannot be pulled", _REGISTRY),
    Rule(
        _CONFIG,
        r'secret "[^"]+" not found|find key .* in Secret',
        "user",
        "secret_missing",
        "A secret that the pod needs, or a key of it, is not there",
        "Make it in the job's namespace, or correct secrets= and training_kubernetes_config",
    ),
    Rule(
        _CONFIG,
        r'configmap "(?!kube-root-ca\.crt)[^"]+" not found|find key .* in ConfigMap',
        "user",
        "config_map_missing",
        "A ConfigMap that the pod needs, or a key of it, is not there",
        "Make it in the job's namespace, or correct training_kubernetes_config",
    ),
    Rule(
        "CreateContainerConfigError|RunContainerError|CreateContainerError",
        "failed to sync|timed out|deadline exceeded|failed to reserve",
        "infrastructure",
        "node_slow",
        "The node does not get on with the container",
        "See the node's kubelet; it is tried again all the time",
    ),
    Rule(
        "CreateContainerConfigError",
        "",
        "user",
        "container_config",
        "The container cannot be made as it is asked for",
        "Change what the message names: in the runtime, the image or training_kubernetes_config",
    ),
    Rule(
        "RunContainerError|CreateContainerError",
        "",
        "user",
        "program_missing",
        "The container's program cannot be started",
        "Take an image that has python3 on its PATH",
    ),
    Rule(
        "Unschedulable|FailedScheduling",
        r'persistentvolumeclaim "[^"]+" not found',
        "user",
        "claim_missing",
        "A claim that the pod mounts is not there",
        "Make it in the job's namespace, or correct the pvc:// URIs and volumes",
    ),
    Rule(
        "Unschedulable|FailedScheduling",
        r"unbound immediate PersistentVolumeClaims|waiting for.*to be (bound|created|provisioned)",
        "infrastructure",
        "claim_pending",
        "A claim that the pod mounts has no volume yet",
        "See 'kubectl describe pvc': its storage class must exist and have a provisioner",
    ),
    Rule(
        "Unschedulable|FailedScheduling",
        # In the words of older and of newer releases; of a zone; of a claim for one pod.
        r"volume node affinity conflict|PersistentVolume's node affinity|no available volume zone|ReadWriteOncePod",
        "resources",
        "claim_elsewhere",
        "A claim can be mounted on some nodes only, and the pod finds no place there",
        _SHARED,
        one_node=True,
    ),
    Rule(
        "Unschedulable|FailedScheduling",
        r"Insufficient (?!cpu\b|memory\b|ephemeral-storage\b|pods\b)\S+",
        "resources",
        "no_free_gpus",
        "No node has as many free GPUs as the pod asks for",
        _GPUS,
    ),
    Rule(
        "Unschedulable|FailedScheduling",
        r"Insufficient |Too many pods",
        "resources",
        "no_free_node",
        "No node has as much free CPU and memory as the pod asks for",
        "Wait for running jobs, or lower training_resource_cpu_per_worker or training_resource_memory_per_worker",
    ),
    Rule(
        "Unschedulable|FailedScheduling",
        "",
        "resources",
        "no_fitting_node",
        "No node fits the pod",
        "Compare the nodes' labels and taints with node selector, affinity and tolerations of the job",
    ),
    Rule(
        "FailedAttachVolume|FailedMount",
        r"Multi-Attach|already (used|attached)|exclusively attached",
        "resources",
        "claim_in_use",
        "A ReadWriteOnce claim is in use on another node",
        _SHARED,
        one_node=True,
    ),
    Rule(
        "FailedMount|FailedAttachVolume",
        r"^(?!.*(kube-root-ca|kube-api-access))",
        "infrastructure",
        "mount",
        "A volume cannot be mounted",
        "See the storage behind the volume; the mount is tried again all the time",
    ),
    Rule(
        "FailedCreatePodSandBox",
        "",
        "infrastructure",
        "sandbox",
        "The node cannot make the pod",
        "See the node's container runtime and network",
    ),
)
"""Of a waiting container, a pod that is not scheduled, and a pod's events; the first that fits counts."""

NO_POD_RULES = (
    Rule("JobCreationFailed", r"already exists", "infrastructure", "", "", ""),  # also in healthy jobs
    Rule("TrainJobResourcesCreationFailed", r'must be of type object: "null"', "infrastructure", "", "", ""),  # passes
    Rule(
        "FailedCreate",
        r"looking up service account",
        "user",
        "service_account_missing",
        "The pod's service account is not there",
        "Make it in the job's namespace, or correct service_account in training_kubernetes_config",
    ),
    Rule(
        "FailedCreate",
        r"exceeded quota",
        "resources",
        "quota_exceeded",
        "The namespace's quota leaves no room for the pod",
        "Wait for running jobs, ask for less, or have the quota raised",
    ),
    Rule(
        "FailedCreate|JobCreationFailed|TrainJobResourcesCreationFailed",
        r"failed calling webhook|connection refused|context deadline exceeded|timed? ?out",
        "infrastructure",
        "webhook_down",
        "A controller in the cluster does not answer",
        "See whether the controllers of Kubeflow Trainer and JobSet run",
    ),
    Rule(
        "TrainJobResourcesCreationFailed",
        r"name is too long|must be no more than",
        "user",
        "name_too_long",
        "The job's name is too long for its pods",
        "Shorten dag_id or task_id",
    ),
    Rule(
        "JobCreationFailed|TrainJobResourcesCreationFailed|FailedCreate",
        r"is invalid|denied the request|violates PodSecurity|is forbidden",
        "user",
        "pod_spec",
        "The cluster does not accept the pods of this job",
        "Change the field that the message names: in training_kubernetes_config or in the runtime",
    ),
    Rule(
        "FailedCreate|JobCreationFailed|TrainJobResourcesCreationFailed",
        "",
        "infrastructure",
        "no_pods",
        "The pods cannot be made",
        "See the events of the job; it is tried again all the time",
    ),
)
"""Of the events of Job, JobSet and TrainJob, while pods are missing."""
