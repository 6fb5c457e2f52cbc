"""What Airflow's ``KubernetesPodOperator`` makes of a training's pod: templates, mutation hook, its own arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.exceptions import InvalidParameters
from airflow_provider_finetune.launchers.kubernetes_config import json_of
from airflow_provider_finetune.launchers.pod import BASE, made_as_asked
from airflow_provider_finetune.operators.pod_rules import refused_arguments

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context


class PodMaker:
    """Makes the pod of one try by a ``KubernetesPodOperator``, which is imported and built only then.

    :param operator: the task.
    :param context: Airflow's.
    :param conn_id: connection of the cncf.kubernetes provider.
    :param further: ``pod_operator_arguments``.
    """

    def __init__(self, operator: BaseOperator, context: Context, conn_id: str, further: Mapping[str, Any]) -> None:
        self._operator, self._context = operator, context
        self._conn_id, self._further = conn_id, further

    def arguments(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the ``KubernetesPodOperator``.

        :param asked: the pod as it would be without it.
        :raises InvalidParameters: ``pod_operator_arguments`` holds what is set here, or what it does not know.
        """
        from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

        ours = _arguments_of(asked)
        further = self._further
        problems = list(refused_arguments(further, ours))
        for name in sorted(further.keys() - inspect.signature(KubernetesPodOperator.__init__).parameters.keys()):
            rule = f"KubernetesPodOperator has no argument {name!r} of its own"
            problems.append(Problem("pod_operator_arguments", {name: "***"}, rule, "Leave it out, or correct its name"))
        if problems:
            raise InvalidParameters(self._operator.task_id, problems)
        return {"task_id": self._operator.task_id, "kubernetes_conn_id": self._conn_id, **ours, **further}

    def pod(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pod as it is to be made.

        :param asked: the pod as it would be without a template and without a mutation hook.
        :raises InvalidParameters: as :meth:`arguments`.
        :raises CannotRender: a template or the hook takes what it is followed by.
        """
        from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
        from kubernetes.client import ApiClient, Configuration

        maker = KubernetesPodOperator(**self.arguments(asked))
        self._render(maker)
        # Else it loads the cluster's configuration for one label; the oldest that is supported does so anyway.
        dry = {"dry_run": True} if "dry_run" in inspect.signature(maker.build_pod_request_obj).parameters else {}
        pod = maker.build_pod_request_obj(self._context, **dry)
        return made_as_asked(ApiClient(Configuration()).sanitize_for_serialization(pod), asked)

    def _render(self, maker: Any) -> None:
        """Render what this operator's own rendering does not reach: models of ``kubernetes.client`` among arguments."""
        given = {name: self._further[name] for name in maker.template_fields if name in self._further}
        names = [name for name, value in given.items() if json_of(value) != value]
        environment = self._operator.get_template_env()
        maker._do_render_template_fields(maker, names, self._context, environment, set())


def _arguments_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod in the words of ``KubernetesPodOperator``, without what is not asked for."""
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    pod = PodGenerator.deserialize_model_dict(dict(asked))
    (container,) = pod.spec.containers
    given = {
        "name": pod.metadata.name,
        "namespace": pod.metadata.namespace,
        "labels": pod.metadata.labels,
        "annotations": pod.metadata.annotations,
        "image": container.image,
        "cmds": container.command,
        "arguments": container.args,
        "env_vars": container.env,
        "env_from": container.env_from,
        "container_resources": container.resources,
        "volume_mounts": container.volume_mounts,
        "container_security_context": container.security_context,
        "termination_message_policy": container.termination_message_policy,
        "volumes": pod.spec.volumes,
        "node_selector": pod.spec.node_selector,
        "tolerations": pod.spec.tolerations,
        "affinity": pod.spec.affinity,
        "service_account_name": pod.spec.service_account_name,
        "security_context": pod.spec.security_context,
        "image_pull_secrets": pod.spec.image_pull_secrets,
        "priority_class_name": pod.spec.priority_class_name,
        "schedulername": pod.spec.scheduler_name,
        "termination_grace_period": pod.spec.termination_grace_period_seconds,
        "active_deadline_seconds": pod.spec.active_deadline_seconds,
    }
    fixed = {"base_container_name": BASE, "random_name_suffix": False, "do_xcom_push": False}
    return {**{name: value for name, value in given.items() if value is not None}, **fixed}
