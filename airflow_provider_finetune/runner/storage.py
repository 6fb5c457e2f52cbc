"""Where data, models and results lie: URIs to local paths, and results put in place whole."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from airflow_provider_finetune.runner.failures import UserError

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")


def scheme(uri: str) -> str | None:
    """Return the scheme of ``uri`` in lower case, ``None`` for a plain path or a HuggingFace id."""
    found = _SCHEME.match(uri)
    return found.group(1).lower() if found else None


def local_path(uri: str, argument: str) -> Path:
    """Return the path that a plain path or a ``file://`` URI names.

    :param uri: what the DAG author gave.
    :param argument: the operator's argument, for the message.
    :raises UserError: another scheme.
    """
    if scheme(uri) is None:
        return Path(uri).expanduser().absolute()
    if scheme(uri) == "file":
        return Path(unquote(urlsplit(uri).path))
    raise UserError(
        "unsupported_uri",
        f"{argument}={uri!r}: this version reads and writes local paths and file:// only",
        "Copy it to a local directory in a task before this one",
    )


def ensure_writable(directory: Path, argument: str) -> None:
    """Try to write into ``directory``, which is made where it is missing.

    :param directory: where a result will go.
    :param argument: the operator's argument, for the message.
    :raises UserError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            "output_not_writable",
            f"{argument}: {directory} cannot be written: {error.strerror or error}",
            "Name a directory that the user who runs the training may write",
        ) from error


def put_directory(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target`` so that a reader sees the old directory or the whole new one."""
    arriving = target.with_name(f".{target.name}.arriving-{os.getpid()}")
    leaving = target.with_name(f".{target.name}.leaving-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, arriving)
        if target.exists():
            target.rename(leaving)
        arriving.rename(target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
        shutil.rmtree(leaving, ignore_errors=True)


def put_text(text: str, target: Path) -> None:
    """Write ``text`` to ``target`` so that a reader sees the old file or the whole new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = target.with_name(f".{target.name}.arriving-{os.getpid()}")
    try:
        arriving.write_text(text, encoding="utf-8")
        arriving.replace(target)
    finally:
        arriving.unlink(missing_ok=True)
