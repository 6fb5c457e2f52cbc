"""How a cncf.kubernetes connection becomes an open client.

The provider's asynchronous hook reads the connection, so that it means here what it means in the provider's own
operators. What that hook leaves out is added: an empty connection tries the pod's own credentials first, as the
synchronous hook does; empty fields of the connection form are no settings; a kubeconfig may be JSON of any depth; and
nobody talks to a server whose certificate is not verified.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import os
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_finetune.cluster.refusals import Refused, refused
from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.contract.version import __version__
from airflow_provider_finetune.exceptions import AirflowNotFoundException


async def opened(conn_id: str) -> tuple[AsyncExitStack, Any, dict[str, Any]]:
    """Return an ``ApiClient`` of kubernetes_asyncio behind the stack that closes it, and the connection's settings.

    :param conn_id: the connection.
    :raises Refused: there is no such connection, nothing to be used in it, or it is not safe to use.
    """
    stack = AsyncExitStack()
    try:
        # The import takes a second or two, in which a triggerer's event loop must not stand still.
        hook = (await asyncio.to_thread(_hook_class))(conn_id=conn_id)
        extras = await hook.get_conn_extras()
        _check_file(extras.get("kube_config_path"))
        api = await stack.enter_async_context(hook.get_conn())
        api.user_agent = f"airflow-provider-finetune/{__version__}"
        check_transport(conn_id, api.configuration, extras)
    except Refused:
        await stack.aclose()
        raise
    except Exception as error:
        await stack.aclose()
        # Not chained: a parser's error quotes the lines around it, which may hold a token.
        raise refused(f"credentials of connection {conn_id!r}", _unusable(conn_id, error)) from None
    return stack, api, extras


@functools.lru_cache(maxsize=1)
def _hook_class() -> type[Any]:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
    from asgiref.sync import sync_to_async
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.config import ConfigException, load_incluster_config

    class Hook(AsyncKubernetesHook):
        settings: dict[str, Any] | None = None

        async def get_conn_extras(self) -> dict[str, Any]:
            if self.settings is None:
                # In asgiref's thread: it works in a worker, in triggerers old and new, and under dag.test(), which has
                # no asynchronous way to a connection and says of each that there is none.
                self.settings = _cleaned(
                    await sync_to_async(lambda: self.get_connection(str(self.conn_id)).extra_dejson)()
                )
                if not any(self.settings.get(name) for name in ("in_cluster", "kube_config", "kube_config_path")):
                    try:
                        load_incluster_config(client_configuration=Configuration())  # type: ignore[no-untyped-call]
                        self.settings["in_cluster"] = True
                    except ConfigException:
                        pass  # not in a pod: the kubeconfig at its usual place
            return self.settings

    return Hook


def _cleaned(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return a connection's settings by their short names, without empty ones."""
    settings = {
        name.removeprefix("extra__kubernetes__"): value for name, value in extras.items() if value not in (None, "")
    }
    if isinstance(settings.get("kube_config"), dict):
        settings["kube_config"] = json.dumps(settings["kube_config"])
    return settings


def _check_file(path: str | None) -> None:
    """Miss a kubeconfig by its name: kubernetes_asyncio takes a file that is not there for one that is empty."""
    if path and not any(Path(file).expanduser().is_file() for file in path.split(os.pathsep)):
        raise FileNotFoundError(f"there is no file {path}")


def check_transport(conn_id: str, configuration: Any, extras: Mapping[str, Any]) -> None:
    """Refuse a connection that does not make sure whom it talks to, or as whom.

    :param conn_id: the connection.
    :param configuration: what the client goes by.
    :param extras: the connection's settings.
    :raises Refused: the server's certificate would not be verified, a token would travel in the open, or there is none.
    """
    address = urlsplit(configuration.host)
    if not configuration.verify_ssl or str(extras.get("disable_verify_ssl", "")).lower() in ("true", "1", "yes"):
        failure = Failure(
            failure_class="user",
            cause="unverified_tls",
            message=f"Connection {conn_id!r} turns off the verification of the API server's certificate: anybody on "
            "the way could take its token",
            cure="Remove disable_verify_ssl and insecure-skip-tls-verify, and put the cluster's CA into the "
            "kubeconfig (certificate-authority-data)",
        )
    elif address.scheme != "https" and configuration.api_key and not _is_loopback(address.hostname or ""):
        failure = Failure(
            failure_class="user",
            cause="unencrypted",
            message=f"Connection {conn_id!r} would send its token unencrypted to {configuration.host}",
            cure="Use the https:// address of the API server in its kubeconfig",
        )
    elif address.scheme == "https" and not (configuration.api_key or configuration.cert_file):
        # kubernetes_asyncio before 34 logs that the program has failed and goes on without credentials.
        failure = Failure(
            failure_class="infrastructure",
            cause="credentials_unavailable",
            message=f"Connection {conn_id!r} gave neither a token nor a client certificate for {configuration.host}; "
            "where a program fetches them (users/exec in the kubeconfig), it failed, and the log above says how",
            cure="Run that program by hand on this machine, or give the kubeconfig a user with credentials",
        )
    else:
        return
    raise refused(f"connection {conn_id!r}", failure)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unusable(conn_id: str, error: Exception) -> Failure:
    """Say why a connection's credentials cannot be read; only texts without content of the file are shown."""
    import yaml
    from airflow.sdk.exceptions import AirflowException
    from kubernetes_asyncio.config import ConfigException

    if isinstance(error, AirflowNotFoundException):
        return Failure(
            failure_class="user",
            cause="connection_missing",
            message=f"There is no connection {conn_id!r}",
            cure=f"Make it: airflow connections add {conn_id} --conn-type kubernetes --conn-extra "
            '\'{"kube_config_path": "/path/to/kubeconfig"}\', or name another by kubernetes_conn_id=',
        )
    shown = isinstance(error, (ConfigException, AirflowException, OSError))
    said = str(error) if shown else type(error).__name__
    if isinstance(error, ConfigException) and said.startswith("exec: "):
        return Failure(
            failure_class="infrastructure",
            cause="credentials_unavailable",
            message=f"The program that fetches the credentials of connection {conn_id!r} failed: {said}",
            cure="Run it by hand on this machine; it is named under users/exec in the kubeconfig",
        )
    of_the_file = (ConfigException, FileNotFoundError, PermissionError, ssl.SSLError, yaml.YAMLError, ValueError)
    return Failure(
        failure_class="user" if isinstance(error, (AirflowException, *of_the_file)) else "infrastructure",
        cause="connection_unusable",
        message=f"Connection {conn_id!r} gives no usable credentials for a cluster: {said}",
        cure="Give it kube_config_path, kube_config or in_cluster; without any, this must be a pod with a service "
        "account or have a kubeconfig at ~/.kube/config",
    )
