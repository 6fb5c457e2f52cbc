"""Places near and far: what a URI names, fetching from it, and results put there whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from airflow_provider_finetune.contract.uris import scheme, shown
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.storage.fetching import fetch, sizes
from airflow_provider_finetune.runner.storage.local import (
    LocalPlace,
    ensure_replaceable,
    ensure_writable,
    put_directory,
    put_text,
)
from airflow_provider_finetune.runner.storage.models import holds_model
from airflow_provider_finetune.runner.storage.remote import RemotePlace
from airflow_provider_finetune.runner.storage.uris import WEB, is_remote, local_path, uri_of

__all__ = [
    "LocalPlace",
    "Place",
    "RemotePlace",
    "ensure_replaceable",
    "ensure_writable",
    "fetch",
    "holds_model",
    "is_remote",
    "local_path",
    "output_place",
    "place",
    "put_directory",
    "put_text",
    "scheme",
    "shown",
    "sizes",
    "uri_of",
]


class Place(Protocol):
    """Where a result goes."""

    @property
    def uri(self) -> str:
        """Under which somebody else finds it; without credentials."""

    @property
    def path(self) -> Path | None:
        """Where it lies on a file system, ``None`` where on none."""

    def child(self, name: str) -> Place:
        """Return the place of this name below this one."""

    def ensure_writable(self, say: Callable[[str], None]) -> None:
        """Try to write there.

        :param say: takes what is odd and no error.
        :raises UserError: it cannot be written.
        :raises RunFailed: it cannot be reached.
        :raises OSError: its disk is full.
        """

    def ensure_replaceable(self, needed: Iterable[Path | str] = ()) -> None:
        """Make sure that publishing a model there puts away an earlier model at most, or the rest of an upload of ours.

        :param needed: files, directories and URIs that the training needs.
        :raises UserError: something else lies there.
        :raises RunFailed: it cannot be reached.
        """

    def put_model(self, directory: Path, say: Callable[[str], None]) -> None:
        """Put the files of ``directory`` there, so that who begins to read finds an older model, none or the new one.

        Who has begun with an older one may go on with files of both.

        :param directory: a model: files without directories but that of chat templates.
        :param say: takes the progress.
        :raises UserError: something else than a model lies there, and stays; or it cannot be written.
        :raises RunFailed: it cannot be reached, or something else has arrived than was sent.
        """

    def put_text(self, text: str) -> None:
        """Write one file, so that a reader sees an older one, none, or the whole new one.

        :param text: its content.
        :raises RunFailed: it cannot be written or reached.
        """

    def holds_model(self) -> bool:
        """Say whether a model lies there: a config and weights that are not empty. Nothing is loaded.

        :raises RunFailed: it cannot be reached or read.
        """


def place(uri: str, argument: str, mounts: Mapping[str, str] | None = None) -> Place:
    """Return the place where a result is to go. Nothing is asked of a server yet.

    :param uri: what the DAG author gave: a path, ``file://``, ``s3://`` or another scheme that fsspec writes.
    :param argument: the operator's argument, for messages.
    :param mounts: ``TrainingSpec.mounts``, from which a local place has its URI.
    :raises UserError: nothing can be written to such a URI.
    """
    return _place(uri, argument, mounts or {}, is_file=False)


def output_place(uri: str, argument: str, name: str, mounts: Mapping[str, str] | None = None) -> Place:
    """Return the file that an output means: itself where it has the suffix of ``name``, else ``name`` in it.

    :param uri: as for :func:`place`.
    :param argument: the operator's argument, for messages.
    :param name: the usual name, e.g. ``metrics.json``.
    :param mounts: as for :func:`place`.
    :raises UserError: nothing can be written to such a URI.
    """
    if PurePosixPath(uri).suffix != PurePosixPath(name).suffix:
        uri = f"{uri.rstrip('/')}/{name}"
    return _place(uri, argument, mounts or {}, is_file=True)


def _place(uri: str, argument: str, mounts: Mapping[str, str], *, is_file: bool) -> Place:
    if scheme(uri) in (None, "file"):
        return LocalPlace(local_path(uri, argument), argument, mounts)
    if scheme(uri) in WEB:
        raise UserError(
            "unsupported_uri",
            f"{argument}={shown(uri)!r}: an http(s) address can be read only",
            "Name a directory, or a store that can be written, such as s3://bucket/path",
        )
    if is_remote(uri) and re.search("[?#]", uri):
        raise UserError(
            "unsupported_uri",
            f"{argument}={shown(uri)!r}: no '?' and no '#' may follow in the place of a result",
            "Leave it out; credentials belong into secrets",
        )
    return RemotePlace(uri, argument, is_file=is_file)
