"""Reads Airflow's configuration, on every supported version and only when asked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def setting(name: str, section: str = "finetune") -> str | None:
    """Return a configuration value, or ``None`` where it is not set or empty.

    :param name: e.g. ``launcher``.
    :param section: section of ``airflow.cfg``.
    """
    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # Airflow 3.1 has it in the core package only
        from airflow.configuration import conf
    value = conf.get(section, name, fallback=None)
    return str(value) if value else None


def switched_on(name: str, *, default: bool) -> bool:
    """Return a switch of the configuration.

    :param name: e.g. ``deferrable``.
    :param default: what it is where it is not set.
    :raises ValueError: it is neither true nor false.
    """
    said = (setting(name) or str(default)).lower()
    if said not in ("true", "t", "1", "yes", "false", "f", "0", "no"):
        raise ValueError(f"[finetune] {name}={said!r} is neither true nor false. Set it to one of them")
    return said in ("true", "t", "1", "yes")


def deployment_id() -> str | None:
    """Return what tells this Airflow from another one that uses the same namespace of a cluster, where anything does.

    :return: ``[finetune] deployment_id``, else a hash of ``[api] base_url``, else ``None``.
    """
    address = setting("base_url", "api")
    return setting("deployment_id") or (hashlib.sha256(address.encode()).hexdigest()[:16] if address else None)


def airflow_home() -> Path:
    """Return ``$AIRFLOW_HOME``, by Airflow's own default ``~/airflow``."""
    return Path(os.path.expandvars(os.environ.get("AIRFLOW_HOME", "~/airflow"))).expanduser()


def executor_is_elsewhere(executor: str | None = None) -> bool:
    """Return whether the tasks of a DAG may run on different machines.

    :param executor: the task's own executor; ``None`` is the first of ``[core] executor``.
    """
    name = executor or (setting("executor", "core") or "LocalExecutor").split(",")[0]
    return name.replace(":", ".").rsplit(".", 1)[-1] not in ("LocalExecutor", "SequentialExecutor", "DebugExecutor")
