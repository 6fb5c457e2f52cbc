"""All causes for which a training ends without a model: one name, its class, and the input that it mostly lies in.

``docs/causes.md`` tells people what each means and what to do; a test holds code, this list and that page together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_finetune.contract.outcome import PEER_FAILED, Failure, FailureClass


@dataclass(frozen=True)
class Cause:
    """What a cause stands for.

    * ``classes``: one, and several only where the cause follows from another, whose class it takes
    * ``parameter``: the operators' argument at fault, empty where it is none, or one time this and one time that
    """

    classes: tuple[FailureClass, ...]
    parameter: str = ""


_USER = {
    # arguments
    "adapter_does_not_fit": "training_lora_target_modules",
    "arguments_refused": "",
    "arguments_too_long": "training_envs",
    "extra_args_collide": "extra_args",
    "extra_args_wrong": "extra_args",
    "keyword_unknown": "extra_args",
    "no_matrix_targeted": "training_target_patterns",
    "no_model_would_be_saved": "training_checkpoint_at_epoch",
    "nothing_to_resume": "resume",
    "processes_wrong": "training_resource_num_procs_per_worker",
    "quantisation_needs_cuda": "training_lora_load_in_4bit",
    "spec_unreadable": "runner",
    "unsupported_uri": "",
    # places
    "output_in_use": "output_model",
    "output_not_writable": "",
    "work_dir_not_shared": "pvc_path",
    "work_dir_not_writable": "pvc_path",
    # data
    "dataset_broken": "dataset",
    "dataset_empty": "dataset",
    "dataset_form_unknown": "dataset",
    "dataset_format": "dataset",
    "dataset_formats_mixed": "dataset",
    "dataset_gated": "dataset",
    "dataset_missing": "dataset",
    "dataset_name_wrong": "dataset",
    "dataset_part_missing": "dataset",
    "dataset_revision_missing": "dataset",
    "dataset_split_unknown": "dataset",
    "dataset_truncated": "dataset",
    "dataset_type_unknown": "extra_args",
    "dataset_unreadable": "dataset",
    "dataset_unusable": "dataset",
    "rows_longer_than_model": "training_max_seq_len",
    "too_many_rows_dropped": "dataset",
    # model and hub
    "architecture_not_loadable": "training_base_model",
    "architecture_unknown": "training_base_model",
    "base_model_quantised": "training_base_model",
    "hub_offline": "training_envs",
    "hub_token_refused": "secrets",
    "model_brings_code": "training_base_model",
    "model_gated": "training_base_model",
    "model_incomplete": "training_base_model",
    "model_missing": "training_base_model",
    "model_name_wrong": "training_base_model",
    "model_revision_missing": "training_base_model",
    "model_unreadable": "training_base_model",
    "model_without_chat_template": "training_base_model",
    "model_without_tokenizer": "training_base_model",
    "tokenizer_not_fast": "training_base_model",
    "tokenizer_not_taken": "training_base_model",
    "tokenizer_without_end": "training_base_model",
    # the training itself
    "non_finite_loss": "training_learning_rate",
    "nothing_learned": "training_learning_rate",
    # image and libraries
    "image_forbidden": "image",
    "image_missing": "image",
    "image_name": "image",
    "libraries_do_not_fit": "image",
    "local_python": "local_python",
    "package_missing": "image",
    "program_missing": "image",
    "skopeo_missing": "image",
    "training_hub_missing": "image",
    # what the job names in the cluster
    "claim_missing": "pvc_path",
    "config_map_missing": "kubernetes_config",
    "container_config": "kubernetes_config",
    "name_too_long": "",
    "namespace_ending": "namespace",
    "namespace_missing": "namespace",
    "pod_spec": "kubernetes_config",
    "queue_missing": "queue_name",
    "queue_too_small": "training_resource_gpu_per_worker",
    "runtime_missing": "runtime",
    "runtime_without_node": "runtime",
    "secret_missing": "secrets",
    "service_account_missing": "kubernetes_config",
    # what the cluster refuses
    "connection_missing": "kubernetes_conn_id",
    "exists": "",
    "forbidden": "kubernetes_conn_id",
    "invalid": "",
    "no_kubernetes_api": "kubernetes_conn_id",
    "rejected": "",
    "too_large": "",
    "trainer_missing": "kubernetes_conn_id",
    "trainer_too_old": "kubernetes_conn_id",
    "unauthorized": "kubernetes_conn_id",
    "unencrypted": "kubernetes_conn_id",
    "unknown_field": "",
    "unknown_setting": "",
    "untrusted_certificate": "kubernetes_conn_id",
    "unverified_tls": "kubernetes_conn_id",
}

_RESOURCES = {
    "disk_full": "pvc_path",
    "disk_too_small": "pvc_path",
    "gpu_out_of_memory": "training_max_tokens_per_gpu",
    "memory_too_small": "training_resource_memory_per_worker",
    "out_of_memory": "training_resource_memory_per_worker",
    "shared_memory_full": "kubernetes_config",
    "training_timeout": "training_timeout",
    "execution_timeout": "",
    # room in the cluster
    "no_fitting_node": "kubernetes_config",
    "no_free_cpu": "training_resource_cpu_per_worker",
    "no_free_disk": "kubernetes_config",
    "no_free_gpus": "training_resource_gpu_per_worker",
    "no_free_memory": "training_resource_memory_per_worker",
    "node_affinity": "kubernetes_config",
    "node_full": "",
    "node_taint": "kubernetes_config",
    "queued": "queue_name",
    "quota_exceeded": "",
}

_INFRASTRUCTURE = {
    # GPUs and processes
    "driver_too_old": "image",
    "ended_early": "",
    "gpu_broken": "",
    "killed": "",
    "library_crash": "",
    "model_not_loadable": "",
    "nccl_failure": "",
    "no_cuda_device": "training_resource_gpu_per_worker",
    "no_model": "",
    "no_outcome": "",
    "nodes_not_set_up": "launcher",
    "port_taken": "",
    "runner_died": "",
    # data and stores
    "dataset_changed": "dataset",
    "download_cut_off": "",
    "hub_failed": "",
    "hub_unreachable": "",
    "output_unreachable": "",
    "source_unreachable": "",
    "upload_torn": "",
    # a start
    "claim_pending": "",
    "image_pull": "image",
    "mount": "",
    "no_pods": "",
    "node_slow": "",
    "nodes_away": "",
    "queue_inactive": "queue_name",
    "registry_unreachable": "image",
    "sandbox": "",
    "slow_start": "",
    "webhook_down": "",
    # an end
    "job_failed": "",
    "pod_failed": "",
    "pods_stay": "",
    # the API server
    "being_deleted": "",
    "conflict": "",
    "credentials_unavailable": "kubernetes_conn_id",
    "expired": "",
    "not_found": "",
    "server_busy": "",
    "server_error": "",
    "unreachable": "kubernetes_conn_id",
}

_PREEMPTED = {
    "deleted": "",
    "evicted": "",
    "node_lost": "",
    "node_short_of_memory": "training_resource_memory_per_worker",
    "pod_deleted": "",
    "preempted": "",
    "task_ended": "",
    "terminated": "",
}

_AS_ANOTHER = {
    # A volume for one node holds back one pod for a while, and several for ever.
    "claim_elsewhere": Cause(("resources", "user"), "pvc_path"),
    "claim_in_use": Cause(("resources", "user"), "pvc_path"),
    "connection_unusable": Cause(("user", "infrastructure"), "kubernetes_conn_id"),
    PEER_FAILED: Cause(("infrastructure", "user", "resources", "preempted")),
    "queue_timeout": Cause(("resources", "user", "infrastructure")),
    "startup_timeout": Cause(("resources", "user", "infrastructure")),
}


def _of(failure_class: FailureClass, parameters: Mapping[str, str]) -> dict[str, Cause]:
    return {name: Cause((failure_class,), parameter) for name, parameter in parameters.items()}


CAUSES: Mapping[str, Cause] = {
    **_of("user", _USER),
    **_of("resources", _RESOURCES),
    **_of("infrastructure", _INFRASTRUCTURE),
    **_of("preempted", _PREEMPTED),
    **_AS_ANOTHER,
}


def input_at_fault(cause: str) -> str:
    """Return the argument that a cause mostly lies in, empty where none does.

    :param cause: any name, also one of a later version.
    """
    return CAUSES[cause].parameter if cause in CAUSES else ""


def failure_of(cause: str, message: str, cure: str, *, parameter: str | None = None) -> Failure:
    """Return a failure, with the class of its cause; the first where it has several.

    :param cause: a name of :data:`CAUSES`.
    :param message: what happened to which object.
    :param cure: what to do.
    :param parameter: the argument at fault, where it is not the usual one.
    """
    known = CAUSES[cause]
    at_fault = known.parameter if parameter is None else parameter
    return Failure(failure_class=known.classes[0], cause=cause, message=message, cure=cure, parameter=at_fault)
