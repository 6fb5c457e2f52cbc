"""The way from a URI to the file system of fsspec that reads and writes it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

from airflow_provider_finetune.contract.uris import has_credential, scheme, shown
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.storage.faults import Fault, guarded
from airflow_provider_finetune.runner.storage.ssh import to_known_hosts
from airflow_provider_finetune.runner.storage.uris import WEB

SECONDS_TO_CONNECT = 30
SECONDS_OF_SILENCE = 60
"""After which a server counts as unreachable. A download as a whole may take as long as it takes."""

_PARTS_AT_ONCE = 4
"""Of 50 MB each are held in memory; s3fs would take ten."""

_SSH = ("sftp", "ssh")

_ELSEWHERE = {
    "pvc": "A claim is mounted where a cluster runs the training; locally name a path or file://",
    "hf": "Push to the hub in a task after this one",
    "oci": "Push to the registry in a task after this one",
}


def connect(uri: str, argument: str, failure: Callable[[Fault], RunFailed]) -> tuple[Any, str]:
    """Return fsspec's file system for ``uri``, and the path that it has there.

    Of a store nothing is asked yet; where a protocol begins with a connection, as SFTP does, it is made.

    Credentials come from the environment, as the library behind the scheme finds them (AWS_ACCESS_KEY_ID,
    AWS_ENDPOINT_URL and so on). Listings are not cached, so nothing is ever stale.

    :param uri: of any scheme that fsspec knows.
    :param argument: the operator's argument, for the message.
    :param failure: says what it means for the run that there is no connection.
    :raises UserError: fsspec does not know the scheme, its package is not installed, or the URI holds a password.
    :raises RunFailed: there is no connection.
    """
    protocol = scheme(uri) or ""
    where = f"{argument}={shown(uri)!r}"
    if protocol in _ELSEWHERE:
        raise UserError("unsupported_uri", f"{where}: the runner cannot use {protocol}:// here", _ELSEWHERE[protocol])
    if has_credential(uri):
        raise UserError(
            "unsupported_uri",
            f"{where}: credentials stand in the URI, which many may read",
            "Leave them out, and hand them over in secrets, in the variables that the store's library reads",
        )
    kind = _kind(protocol, where)
    # The scheme in lower case, as fsspec knows it. Not fsspec.url_to_fs, which takes "::" in a name for a chain.
    uri = protocol + uri[len(protocol) :]
    if protocol in WEB:
        return kind(**_web(uri), skip_instance_cache=True), uri
    options = {**kind._get_kwargs_from_urls(uri), "skip_instance_cache": True}
    if protocol not in _SSH:
        # There every option that is not known goes to the library's connect(), and no listing is cached.
        options["use_listings_cache"] = False
    if protocol in ("s3", "s3a"):
        options["max_concurrency"] = _PARTS_AT_ONCE
        options["config_kwargs"] = {"connect_timeout": SECONDS_TO_CONNECT, "read_timeout": SECONDS_OF_SILENCE}
    return guarded(lambda: kind(**options), failure), str(kind._strip_protocol(uri))


def path_in(store: Any, uri: str) -> str | None:
    """Return the path that ``uri`` has in an open file system, ``None`` where it lies in another one.

    One file system may have several schemes, as s3 and s3a or gs and gcs.

    :param store: what :func:`connect` returned.
    :param uri: of any scheme.
    """
    import fsspec

    protocol = scheme(uri) or ""
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError):
        return None
    uri = protocol + uri[len(protocol) :]
    here, there = store.storage_options, kind._get_kwargs_from_urls(uri)
    elsewhere = any(name in here and here[name] != there.get(name, here[name]) for name in ("host", "account_name"))
    return str(kind._strip_protocol(uri)) if isinstance(store, kind) and not elsewhere else None


def _web(uri: str) -> dict[str, Any]:
    from aiohttp import ClientTimeout

    return {
        # aiohttp would end every download after 5 minutes, and heed no proxy.
        "client_kwargs": {
            "timeout": ClientTimeout(total=None, sock_connect=SECONDS_TO_CONNECT, sock_read=SECONDS_OF_SILENCE),
            "trust_env": True,
        },
        # Else a server may compress on the way, and what has arrived cannot be held against what was announced.
        "headers": {"Accept-Encoding": "identity"},
        # A presigned link is sent as it was signed.
        "encoded": re.fullmatch("[!-~]+", uri) is not None,
    }


def _kind(protocol: str, where: str) -> Any:
    try:
        import fsspec
        from fsspec.registry import known_implementations
    except ImportError:
        raise _package_missing(where, protocol, "fsspec") from None
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ValueError:
        there = ", ".join(_installed(known_implementations))
        raise UserError(
            "unsupported_uri",
            f"{where}: fsspec knows no {protocol}://",
            f"Name a local path, or a place of one of these kinds, whose packages are installed: {there}",
        ) from None
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        if package == "fsspec":
            package = getattr(error.__cause__, "name", None) or protocol
        raise _package_missing(where, protocol, package) from None
    if kind.__module__ == "fsspec.implementations.sftp":
        return to_known_hosts(kind, connect=SECONDS_TO_CONNECT, silence=SECONDS_OF_SILENCE)
    return kind


def _package_missing(where: str, protocol: str, package: str) -> UserError:
    return UserError(
        "package_missing",
        f"{where}: {protocol}:// needs the package {package}, which the training's Python has not",
        f"Install {package} where the training runs: into the image, or beside training-hub for the local launcher",
    )


def _installed(known: dict[str, Any]) -> list[str]:
    packages = {name: entry["class"].partition(".")[0] for name, entry in known.items()}
    found = [name for name, package in packages.items() if package != "fsspec" and importlib.util.find_spec(package)]
    return sorted({*found, *WEB} - set(_ELSEWHERE))
