"""What it means that something else than its program has ended a pod: the words of Kubernetes, as a table."""

from __future__ import annotations

from airflow_provider_finetune.cluster.causes import Rule

RETRY = "Let it be retried: where a checkpoint was saved, the training goes on there"
_MAY_RUN = "Its node was lost, where the program may still run"
_LOOK = f"Look at the node before a retry writes to the same place. {RETRY}"
_BY_NODE = "Evicted|TerminationByKubelet"

DISRUPTION_RULES = (
    Rule(
        _BY_NODE,
        r"ephemeral|emptydir|imagefs|nodefs|disk|inodes",
        "disk_full",
        "It was evicted, as it or its node has used up the local disk",
        "Write less outside the claim (pvc_path), or raise ephemeral-storage in the runtime",
    ),
    Rule(
        _BY_NODE,
        r"memory",
        "node_short_of_memory",
        "It was evicted, as its node was short of memory",
        "Raise training_resource_memory_per_worker to what the training uses, so that others are evicted first. "
        + RETRY,
    ),
    Rule(r"Preempt\w*", "", "preempted", "It had to make room for a pod of higher priority", RETRY),
    Rule(
        "NodeLost|DeletionByTaintManager",
        r"unreachable|not.?ready|unresponsive",
        "node_lost",
        _MAY_RUN,
        _LOOK,
    ),
    Rule("NodeLost|DeletionByPodGC", "", "node_lost", _MAY_RUN, _LOOK),
    Rule(".*", "", "evicted", "It was taken from its node", RETRY),
)
"""Of a pod's condition DisruptionTarget, and of what a pod gives as the reason of its failure; the first that fits."""

NODE_LOST = next(rule for rule in DISRUPTION_RULES if rule.cause == "node_lost")
