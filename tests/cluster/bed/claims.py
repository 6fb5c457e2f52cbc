"""Claims whose volumes are folders of this machine."""

from __future__ import annotations

from typing import Any

from tests.cluster.bed.cluster import Cluster


def claim_objects(cluster: Cluster, namespace: str, name: str, mode: str, node: str = "") -> list[dict[str, Any]]:
    """A claim and its volume, which is the folder ``cluster.work_dir / namespace / name`` of this machine.

    :param node: the only one on which the volume can be mounted; by default any.
    """
    folder = cluster.work_dir / namespace / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)  # pods that are not root write there too
    volume = f"{namespace}-{name}"
    common = {"accessModes": [mode], "storageClassName": ""}
    size = {"storage": "10Gi"}
    claimed = {"namespace": namespace, "name": name}
    on_node = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    affinity = {"nodeAffinity": {"required": {"nodeSelectorTerms": [on_node]}}} if node else {}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {**common, **affinity, "capacity": size, "hostPath": {"path": str(folder)}, "claimRef": claimed},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**common, "volumeName": volume, "resources": {"requests": size}},
        },
    ]
