"""Says in a task log that a node is lost, and that it is there again."""

from __future__ import annotations

from collections.abc import Iterable
from logging import Logger

from airflow_provider_finetune.launchers.observed import PodState

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
"""Taint by which somebody tells a cluster that nothing runs on a node any more. To delete its pods by force is not
enough: a Job with a ``podFailurePolicy`` keeps them until they have failed."""


class LostNodes:
    """The nodes of one training that do not answer.

    Nothing ends for it: the program may go on there, and a second one would write to the same place.

    :param log: the task's.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._told: set[str] = set()

    def look(self, pods: Iterable[PodState]) -> None:
        """Say once of each pod that its node is lost, and once that it is not.

        :param pods: of the training, as far as they are known.
        """
        for pod in pods:
            lost = pod.silent and not pod.gone
            if lost and pod.uid not in self._told:
                self._told.add(pod.uid)
                self._log.warning(
                    "Node %s does not answer, so it is not known whether pod %s trains on; this is waited for. If the "
                    "node is lost for good, switch it off and tell the cluster: kubectl taint node %s %s. A retry then "
                    "goes on from the last checkpoint",
                    *(pod.node, pod.name, pod.node, OUT_OF_SERVICE),
                )
            elif not lost and pod.uid in self._told:
                self._told.discard(pod.uid)
                if pod.live:
                    self._log.info("Node %s answers again", pod.node)
