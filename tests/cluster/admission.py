"""Rules that the API server itself applies to new TrainJobs of one namespace: as those of a team, or of a queue."""

from __future__ import annotations

from typing import Any


def rule(kind: str, namespace: str, name: str, label: str, **spec: Any) -> list[dict[str, Any]]:
    """Make the objects of a rule for the TrainJobs that carry a label.

    :param kind: ``Validating`` or ``Mutating``.
    :param spec: what the rule says: ``validations`` or ``mutations``.
    """
    api = "admissionregistration.k8s.io/v1"
    metadata = {"name": f"{name}.{namespace}.example.org"}
    new_jobs = {
        "apiGroups": ["trainer.kubeflow.org"],
        "apiVersions": ["*"],
        "operations": ["CREATE"],
        "resources": ["trainjobs"],
    }
    where = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "objectSelector": {"matchExpressions": [{"key": label, "operator": "Exists"}]},
    }
    policy = {"matchConstraints": {"resourceRules": [new_jobs], **where}, "failurePolicy": "Fail", **spec}
    actions = {"validationActions": ["Deny"]} if kind == "Validating" else {}
    binding = {"policyName": metadata["name"], **actions}
    return [
        {"apiVersion": api, "kind": f"{kind}AdmissionPolicy", "metadata": metadata, "spec": policy},
        {"apiVersion": api, "kind": f"{kind}AdmissionPolicyBinding", "metadata": metadata, "spec": binding},
    ]


def probe(namespace: str, label: str, value: str = "probe") -> dict[str, Any]:
    """Make a TrainJob to which a rule applies, for a dry run: a rule is in force a moment after it was made."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "probe", "namespace": namespace, "labels": {label: value}},
        "spec": {"runtimeRef": {"name": "training-hub"}, "trainer": {"numNodes": 1}},
    }
