"""Results on a file system: put in place whole, by renaming."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_finetune.contract.uris import scheme
from airflow_provider_finetune.runner.failures import UserError, is_disk_full
from airflow_provider_finetune.runner.storage.models import TEMPLATES, holds_model, in_use, is_model, is_part
from airflow_provider_finetune.runner.storage.uris import local_path, uri_of


@dataclass(frozen=True)
class LocalPlace:
    """A file or a directory of a file system, see :class:`~airflow_provider_finetune.runner.storage.Place`."""

    path: Path
    argument: str
    mounts: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return uri_of(self.path, self.mounts)

    def child(self, name: str) -> LocalPlace:
        return LocalPlace(self.path / name, self.argument, self.mounts)

    def ensure_writable(self, say: Callable[[str], None]) -> None:
        ensure_writable(self.path.resolve().parent, self.argument)

    def ensure_replaceable(self, needed: Iterable[Path | str] = ()) -> None:
        local = (place for place in needed if isinstance(place, Path) or scheme(place) in (None, "file"))
        paths = [place if isinstance(place, Path) else local_path(place, self.argument) for place in local]
        ensure_replaceable(self.path, paths)

    def put_model(self, directory: Path, say: Callable[[str], None]) -> None:
        put_directory(directory, self.path)

    def put_text(self, text: str) -> None:
        put_text(text, self.path)

    def holds_model(self) -> bool:
        return holds_model(self.path)


def ensure_writable(directory: Path, argument: str) -> None:
    """Try to write into ``directory``, which is made where it is missing.

    :param directory: where a result will go.
    :param argument: the operator's argument, for the message.
    :raises UserError: it cannot be written.
    :raises OSError: its disk is full.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / _unique("writable")
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            "output_not_writable",
            f"{argument}: {directory} cannot be written: {error.strerror or error}",
            "Name a directory that the user who runs the training may write",
            parameter=argument,
        ) from error


def ensure_replaceable(target: Path, needed: Iterable[Path] = ()) -> None:
    """Make sure that publishing a model to ``target`` puts away an earlier model at most.

    A model is a directory of files without directories but that of chat templates, with a config and weights.

    :param target: where a model will be published; links are followed.
    :param needed: files and directories that the training needs.
    :raises UserError: something else lies there.
    """
    place = target.resolve()
    if place == place.parent:
        raise in_use("output_model", f"{str(place)!r} is the root of the file system")
    if os.path.ismount(place):
        raise UserError(
            "output_in_use",
            f"output_model: {target} is where a disk or volume is mounted, and a model takes its place by a renaming",
            f"Name a directory below it, such as {target / 'model'}",
        )
    for path in needed:
        if path.resolve().is_relative_to(place):
            raise in_use("output_model", f"{target} would replace {path}, which the run needs")
    _ensure_no_more_than_a_model(place, target)


def _ensure_no_more_than_a_model(place: Path, named: Path) -> None:
    # One look, since another run may put its model there at this moment.
    try:
        with os.scandir(place) as listing:
            entries = {entry.name: _is_of_no_model(entry) for entry in listing}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        if not place.exists():
            # A part of the way is a file: that it cannot be written is said where writing is tried.
            return
        raise in_use("output_model", f"{named} is a file") from error
    if entries and (any(entries.values()) or not is_model(entries)):
        raise in_use(
            "output_model", f"{named} holds files that are no model of its own, and publishing would remove them"
        )


def _is_of_no_model(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir():
        return False
    return entry.name != TEMPLATES or not all(is_part(f"{TEMPLATES}/{name}") for name in os.listdir(entry))


def put_directory(source: Path, target: Path) -> None:
    """Copy the model in ``source`` to ``target`` so that a reader sees the old one or the whole new one.

    :param source: a directory.
    :param target: see :func:`ensure_replaceable`.
    :raises UserError: something else than a model lies there, and stays.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = target.with_name(_unique("arriving"))
    try:
        shutil.copytree(source, arriving)
        while not _take_place(arriving, target):
            # Another run has published there between our two renames, and is replaced in its turn.
            pass
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _take_place(arriving: Path, target: Path) -> bool:
    """Put ``target`` away and ``arriving`` into its place; ``False`` where somebody else was quicker."""
    leaving = target.with_name(_unique("leaving"))
    with suppress(FileNotFoundError):
        target.rename(leaving)
    try:
        # Looked at where nobody else writes: what lay there may have changed since the check.
        _ensure_no_more_than_a_model(leaving, target)
        arriving.rename(target)
    except (OSError, UserError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            shutil.rmtree(leaving, ignore_errors=True)
            return False
        with suppress(FileNotFoundError):
            leaving.rename(target)
        raise
    shutil.rmtree(leaving, ignore_errors=True)
    return True


def put_text(text: str, target: Path) -> None:
    """Write ``text`` to ``target`` so that a reader sees the old file or the whole new one."""
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = target.with_name(_unique("arriving"))
    try:
        arriving.write_text(text, encoding="utf-8")
        arriving.replace(target)
    finally:
        arriving.unlink(missing_ok=True)


def _unique(what: str) -> str:
    """A name that fits beside any other and is nobody else's: containers that share a disk have equal process ids."""
    return f".{what}-{uuid.uuid4().hex[:12]}"
