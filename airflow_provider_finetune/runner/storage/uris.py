"""What a URI names for the runner: something behind fsspec, or a path of this machine, which others know by a URI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from airflow_provider_finetune.contract.uris import scheme, shown
from airflow_provider_finetune.runner.failures import UserError

WEB = ("http", "https")


def is_remote(uri: str) -> bool:
    """Say whether ``uri`` is read and written by fsspec: another scheme than that of a local or a hub's name."""
    return scheme(uri) not in (None, "file", "hf", "oci", "pvc")


def local_path(uri: str, argument: str) -> Path:
    """Return the path that a plain path or a ``file://`` URI names.

    :param uri: what the DAG author gave.
    :param argument: the operator's argument, for the message.
    :raises UserError: another scheme, or another machine.
    """
    if scheme(uri) is None:
        return Path(uri).expanduser().absolute()
    if scheme(uri) != "file":
        raise UserError(
            "unsupported_uri",
            f"{argument}={shown(uri)!r}: the runner reads and writes a local path or file:// here",
            "Copy it to a local directory in a task before this one",
        )
    # Not by urlsplit: "#" and "?" are part of a path that somebody has put behind "file://".
    host, slash, path = uri[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise UserError(
            "unsupported_uri",
            f"{argument}={uri!r}: {host!r} stands where a file:// URI names another machine",
            "Write three slashes before an absolute path: file:///data/train.jsonl",
        )
    return Path(unquote(slash + path))


def uri_of(path: Path, mounts: Mapping[str, str]) -> str:
    """Return the URI under which somebody else finds ``path``: below a mount that of the volume, else ``file://``.

    :param path: absolute.
    :param mounts: ``TrainingSpec.mounts``; of several that hold the path the longest counts.
    """
    holding = [(mount, uri) for uri, mount in mounts.items() if path.is_relative_to(mount)]
    if not holding:
        return path.as_uri()
    mount, uri = max(holding, key=lambda item: len(Path(item[0]).parts))
    rest = path.relative_to(mount).as_posix()
    return uri.rstrip("/") + ("" if rest == "." else f"/{quote(rest)}")
