"""Secrets out of Airflow's connections, for a runner on this machine."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.exceptions import AirflowNotFoundException, InvalidParameters


def resolve_secrets(task_id: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the value of each secret, masked in all logs from now on.

    :param task_id: the task that asks, for the message.
    :param secrets: ``conn:<connection id>`` by variable name; the value is that connection's password.
    :raises InvalidParameters: there is no such connection, or it has no password.
    """
    values, problems = {}, []
    for name, source in secrets.items():
        password = _password(source.removeprefix("conn:"))
        if password:
            values[name] = password
        else:
            rule = "there is no such connection" if password is None else "that connection has no password"
            cure = f"Make it, e.g. by 'airflow connections add', with the value of {name} as its password"
            problems.append(Problem("secrets", {name: source}, rule, cure))
    if problems:
        raise InvalidParameters(task_id, problems)
    mask(*values.values())
    return values


def mask(*secrets: str) -> None:
    """Keep values out of all logs.

    :param secrets: the values.
    """
    if not secrets:
        return
    from airflow.sdk.log import mask_secret

    for secret in secrets:
        mask_secret(secret)


def _password(conn_id: str) -> str | None:
    """Return a connection's password, ``""`` where it has none and ``None`` where there is no such connection."""
    from airflow.sdk import Connection

    try:
        return str(Connection.get(conn_id).password or "")
    except AirflowNotFoundException:
        return None
