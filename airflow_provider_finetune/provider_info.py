"""What Airflow lists about this provider: ``airflow providers get airflow-provider-finetune --full``.

Every Airflow component calls this while it starts, before its configuration exists; so it imports nothing of Airflow.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_finetune.contract.version import __version__

_INTEGRATION = "Fine-tuning (training-hub)"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description, in the form of Airflow's ``provider_info.schema.json``.

    :return: a new dictionary, which the caller may change. ``package-name`` must be the distribution's canonical name,
        else ``airflow providers list`` ends in a ``ValueError``.
    """
    return {
        "package-name": "airflow-provider-finetune",
        "name": "Fine-tune",
        "description": "Fine-tune language models with training-hub on Kubeflow, in a GPU pod or on one machine",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://github.com/Red-Hat-AI-Innovation-Team/training_hub",
                "tags": ["service"],
            }
        ],
        "operators": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_provider_finetune.operators.finetune",
                    "airflow_provider_finetune.operators.lora",
                ],
            }
        ],
        "triggers": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_provider_finetune.triggers"]},
        ],
        "config": {
            "finetune": {
                "description": "Where and how FineTuneOperator and LoRAOperator run unless a task says otherwise.",
                "options": {
                    "launcher": _option(
                        "What runs a training whose task names no ``launcher``: ``trainjob`` (Kubeflow Trainer), "
                        "``pod`` (one GPU pod) or ``local`` (a process on the worker's machine).",
                        default="trainjob",
                    ),
                    "work_dir": _option(
                        "Root of all files of the local launcher for tasks that name no ``pvc_path``; on several "
                        "workers a folder that they share. Unset: ``$AIRFLOW_HOME/finetune``.",
                        example="/var/lib/finetune",
                    ),
                    "image": _option(
                        "Image with training-hub for tasks on a cluster that name none. Unset: the runtime's.",
                        example="registry.example/training-hub:0.11.2",
                    ),
                    "pvc_path": _option(
                        "Root of all files on a cluster for tasks that name no ``pvc_path``.",
                        example="pvc://training/runs",
                    ),
                    "deferrable": _option(
                        "Whether tasks on a cluster wait in the triggerer, without a worker slot.", default="True"
                    ),
                    "deployment_id": _option(
                        "What tells this Airflow from others that train in the same namespace. Unset: a hash of "
                        "``[api] base_url``.",
                        example="production",
                    ),
                    "trainer_api": _option(
                        "Form of the Kubeflow Trainer's API: ``runtimePatches`` (2.3), ``runtimePatches-2.2`` or "
                        "``podTemplateOverrides`` (2.1). Unset: found out with the first job of each process.",
                        example="runtimePatches",
                    ),
                    "local_python": _option(
                        "Python interpreter with training-hub for the local launcher. Unset: the worker's own.",
                        example="/opt/train/bin/python",
                    ),
                    "reads_per_second": _option(
                        "How many reads of logs and events one triggerer asks of an API server per second, for all "
                        "trainings that it follows together.",
                        default="20",
                    ),
                },
            }
        },
    }


def _option(description: str, *, default: str | None = None, example: str | None = None) -> dict[str, str | None]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": "string",
        "example": example,
        "default": default,
    }
