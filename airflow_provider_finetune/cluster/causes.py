"""Which words of Kubernetes and Kueue mean which cause of a training that waits: tables.

The texts are those of Kubernetes 1.36, JobSet 0.12, Trainer 2.3 and Kueue 0.19: only the text tells one cause from
another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One cause.

    * ``reason``, ``text``: patterns of the whole reason, and of a part of the text in any case
    * ``cause``: a name of :data:`~airflow_provider_finetune.contract.causes.CAUSES`; none marks what is to be passed
      over
    * ``what``: what has happened, in words; ``cure``: what to do
    * ``one_node``: time mends it for a training on one node, and never for one on several
    """

    reason: str
    text: str
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

POD_RULES = (
    Rule("InvalidImageName", "", "image_name", "The image's name is not valid", "Correct image="),
    Rule(
        "ErrImageNeverPull",
        "",
        "image_missing",
        "The image is not on the node, and the runtime forbids to pull it",
        "Put the image on the nodes, or change imagePullPolicy in the runtime",
    ),
    Rule(
        _PULL,
        r"dial tcp|no such host|i/o timeout|connection re(fused|set)|TLS handshake|x509|\bEOF\b|deadline exceeded|"
        r"\b(429|50[0-4])\b|toomanyrequests",
        "registry_unreachable",
        "The image's registry does not answer",
        _REGISTRY,
    ),
    Rule(
        _PULL,
        r"unauthorized|denied|forbidden|authentication required|authorization failed|insufficient_scope|no basic auth",
        "image_forbidden",
        "The registry does not give the image to this namespace",
        "Correct image=, or name the secret with the registry's credentials: imagePullSecrets of the runtime, or "
        "image_pull_secrets in kubernetes_config",
    ),
    Rule(
        _PULL,
        r"not found|manifest unknown|name unknown|does not exist|no match for platform",
        "image_missing",
        "The registry does not have the image",
        "Correct the name and tag in image=",
    ),
    Rule("ErrImagePull|ImagePullBackOff", "", "image_pull", "The image cannot be pulled", _REGISTRY),
    Rule(
        _CONFIG,
        r'secret "[^"]+" not found|find key .* in Secret',
        "secret_missing",
        "A secret that the pod needs, or a key of it, is not there",
        "Make it in the job's namespace, or correct secrets= and kubernetes_config",
    ),
    Rule(
        _CONFIG,
        r'configmap "(?!kube-root-ca\.crt)[^"]+" not found|find key .* in ConfigMap',
        "config_map_missing",
        "A ConfigMap that the pod needs, or a key of it, is not there",
        "Make it in the job's namespace, or correct kubernetes_config",
    ),
    Rule(
        "CreateContainerConfigError|RunContainerError|CreateContainerError",
        # What a kubelet says that has just started, or whose API server has.
        r'failed to sync|not yet been read|not registered|user "system:node:|dial tcp|'
        r"connection re(fused|set)|\bEOF\b|timed out|deadline exceeded|failed to reserve",
        "node_slow",
        "The node does not get on with the container",
        "See the node's kubelet; it is tried again all the time",
    ),
    Rule(
        "CreateContainerConfigError",
        "",
        "container_config",
        "The container cannot be made as it is asked for",
        "Change what the message names: in the runtime, the image or kubernetes_config",
    ),
    Rule(
        "RunContainerError|CreateContainerError",
        "",
        "program_missing",
        "The container's program cannot be started",
        "Take an image that has python3 on its PATH",
    ),
    Rule(
        "FailedAttachVolume|FailedMount",
        r"Multi-Attach|already (used|attached)|exclusively attached",
        "claim_in_use",
        "A ReadWriteOnce claim is in use on another node",
        _SHARED,
        one_node=True,
    ),
    Rule(
        "FailedMount|FailedAttachVolume",
        r"^(?!.*(kube-root-ca|kube-api-access))",
        "mount",
        "A volume cannot be mounted",
        "See the storage behind the volume; the mount is tried again all the time",
    ),
    Rule(
        "FailedCreatePodSandBox",
        "",
        "sandbox",
        "The node cannot make the pod",
        "See the node's container runtime and network",
    ),
)
"""Of a waiting container and a pod's events; the first that fits counts."""

_UNSCHEDULABLE = "Unschedulable|FailedScheduling"

SCHEDULING_RULES = (
    Rule(
        "SchedulingGated",
        "",
        "queued",
        "A queue holds the pod back",
        "Wait for other jobs of the queue, ask for less, or name another by queue_name=",
    ),
    Rule(
        _UNSCHEDULABLE,
        r'persistentvolumeclaim "[^"]+" not found',
        "claim_missing",
        "A claim that the pod mounts is not there",
        "Make it in the job's namespace, or correct the pvc:// URIs and volumes",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"unbound immediate PersistentVolumeClaims|waiting for.*to be (bound|created|provisioned)",
        "claim_pending",
        "A claim that the pod mounts has no volume yet",
        "See 'kubectl describe pvc': its storage class must exist and have a provisioner",
    ),
    Rule(
        _UNSCHEDULABLE,
        # In the words of older and of newer releases; of a zone; of a claim for one pod.
        r"volume node affinity conflict|PersistentVolume's node affinity|no available volume zone|ReadWriteOncePod",
        "claim_elsewhere",
        "A claim can be mounted on some nodes only, and the pod finds no place there",
        _SHARED,
        one_node=True,
    ),
    Rule(
        _UNSCHEDULABLE,
        r"Insufficient (?!cpu\b|memory\b|ephemeral-storage\b|pods\b)\S+",
        "no_free_gpus",
        "No node has as many free GPUs as the pod asks for",
        "Wait for running jobs, ask for fewer (training_resource_gpu_per_worker), or add nodes that have them",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"Insufficient cpu",
        "no_free_cpu",
        "No node has as much free CPU as the pod asks for",
        "Wait for running jobs, or lower training_resource_cpu_per_worker",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"Insufficient memory",
        "no_free_memory",
        "No node has as much free memory as the pod asks for",
        "Wait for running jobs, or lower training_resource_memory_per_worker",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"Insufficient ephemeral-storage",
        "no_free_disk",
        "No node has as much free disk as the pod asks for",
        "Lower ephemeral-storage in kubernetes_config or in the runtime, or free the nodes' disks",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"Too many pods|Insufficient pods",
        "node_full",
        "No node takes another pod",
        "Wait for running pods, or add nodes",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"taint\S* \{node\.kubernetes\.io/(not-ready|unreachable|\S+-pressure)|were unschedulable",
        "nodes_away",
        "The nodes that would fit are cordoned off, or not ready",
        "See 'kubectl get nodes'; the pod is scheduled when they are back",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"taint",
        "node_taint",
        "Nodes have a taint that the pod does not tolerate",
        "Compare the nodes' taints ('kubectl describe nodes') with tolerations in kubernetes_config",
    ),
    Rule(
        _UNSCHEDULABLE,
        r"Pod's node affinity|pods? (anti-)?affinity|topology spread",
        "node_affinity",
        "No node has what the pod's node selector or affinity asks for",
        "Compare the nodes' labels ('kubectl get nodes --show-labels') with node_selector and affinity in "
        "kubernetes_config",
    ),
    Rule(
        _UNSCHEDULABLE,
        "",
        "no_fitting_node",
        "No node fits the pod",
        "Compare the nodes with what the job asks for: 'kubectl describe nodes'",
    ),
)
"""Of a pod that has no node. The first that fits is the cause, and the cures of all that fit are told."""

NO_POD_RULES = (
    Rule("JobCreationFailed", r"already exists", "", "", ""),  # also in healthy jobs
    Rule("TrainJobResourcesCreationFailed", r'must be of type object: "null"', "", "", ""),  # passes
    Rule(
        "FailedCreate",
        r"looking up service account",
        "service_account_missing",
        "The pod's service account is not there",
        "Make it in the job's namespace, or correct service_account in kubernetes_config",
    ),
    Rule(
        "FailedCreate",
        r"exceeded quota",
        "quota_exceeded",
        "The namespace's quota leaves no room for the pod",
        "Wait for running jobs, ask for less, or have the quota raised",
    ),
    Rule(
        "FailedCreate|JobCreationFailed|TrainJobResourcesCreationFailed",
        r"failed calling webhook|connection refused|context deadline exceeded|timed? ?out",
        "webhook_down",
        "A controller in the cluster does not answer",
        "See whether the controllers of Kubeflow Trainer and JobSet run",
    ),
    Rule(
        "TrainJobResourcesCreationFailed",
        r"name is too long|must be no more than",
        "name_too_long",
        "The job's name is too long for its pods",
        "Shorten dag_id or task_id",
    ),
    Rule(
        "JobCreationFailed|TrainJobResourcesCreationFailed|FailedCreate",
        r"is invalid|denied the request|violates PodSecurity|is forbidden",
        "pod_spec",
        "The cluster does not accept the pods of this job",
        "Change the field that the message names: in kubernetes_config or in the runtime",
    ),
    Rule(
        "FailedCreate|JobCreationFailed|TrainJobResourcesCreationFailed",
        "",
        "no_pods",
        "The pods cannot be made",
        "See the events of the job; it is tried again all the time",
    ),
)
"""Of the events of Job, JobSet and TrainJob, while pods are missing."""

_HELD_BACK = "Pending|Inadmissible|Stopped|Preempted"

QUEUE_RULES = (
    Rule(
        _HELD_BACK,
        r"(LocalQueue|ClusterQueue) \S+ (doesn't|does not) exist",
        "queue_missing",
        "There is no such queue",
        "Correct queue_name=, or make the queue in the job's namespace: 'kubectl get localqueues'",
    ),
    Rule(
        _HELD_BACK,
        r"Queue \S+ is (inactive|stopped|terminating)",
        "queue_inactive",
        "The queue lets no job in at present",
        "See 'kubectl describe clusterqueue', or name another by queue_name=",
    ),
    Rule(
        _HELD_BACK,
        # Where one flavour of several has the quota and only not now, waiting helps.
        r"^(?!.*unused quota).*(> maximum capacity|exceeds? the maximum capacity)",
        "queue_too_small",
        "The queue's quota is smaller than what the job asks for, so it would wait for ever",
        "Ask for less (training_resource_gpu_per_worker, training_resource_num_workers), or name a larger queue by "
        "queue_name=",
    ),
    Rule(
        _HELD_BACK,
        "",
        "queued",
        "The queue has no room yet",
        "Wait for other jobs of the queue, ask for less, or name another by queue_name=",
    ),
)
"""Of what Kueue says of a job that it holds back."""
