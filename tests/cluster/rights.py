"""The rights that are shipped, as they are, for a namespace of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.cluster.bed.cluster import Cluster

SHIPPED = Path(__file__).parents[2] / "docs" / "kubernetes"
ACCOUNT = "finetune-worker"
"""Has all of them: ``dag.test()`` is worker and triggerer in one, and a connection that serves both is as usual."""


def shipped(namespace: str, suffix: str = "", *, apart: bool = False, file: str = "rbac.yaml") -> list[dict[str, Any]]:
    """Read the objects, with all rights given to one account.

    :param suffix: of all names, where a namespace has them more than once.
    :param apart: leave the rights of worker and triggerer to accounts of their own, as they are shipped.
    :param file: which of those that are shipped.
    """
    # As its first lines say: "change ml to yours".
    text = (SHIPPED / file).read_text(encoding="utf-8").replace("namespace: ml}", f"namespace: {namespace}}}")
    objects = list(yaml.safe_load_all(text))
    assert not [item for item in objects if item["metadata"].get("namespace", namespace) != namespace]
    for item in objects:
        # Those of the whole cluster stand beside other tests' own.
        more = suffix if "namespace" in item["metadata"] else f"-{namespace}{suffix}"
        item["metadata"]["name"] += more
        if "roleRef" in item:
            item["roleRef"]["name"] += more
        for subject in item.get("subjects", []):
            subject["name"] = f"{subject['name'] if apart else ACCOUNT}{suffix}"
    return objects


def without(objects: list[dict[str, Any]], resource: str, verb: str) -> list[dict[str, Any]]:
    """Take one right away, which must be there."""
    rules = [rule for item in objects for rule in item.get("rules", []) if resource in rule["resources"]]
    assert [rule["verbs"].remove(verb) for rule in rules if verb in rule["verbs"]]
    return objects


def grant(cluster: Cluster, objects: list[dict[str, Any]]) -> Path:
    """Make the account with its rights, and give its kubeconfig."""
    cluster.apply(*objects)
    account = next(item for item in objects if item["kind"] == "ServiceAccount")["metadata"]
    return cluster.service_account_kubeconfig(account["namespace"], account["name"])


def withdraw(cluster: Cluster, objects: list[dict[str, Any]]) -> None:
    """Remove what belongs to no namespace, which goes with none."""
    names = [f"{item['kind']}/{item['metadata']['name']}" for item in objects if "namespace" not in item["metadata"]]
    if names:
        cluster.kubectl("delete", "--wait=false", *names)
