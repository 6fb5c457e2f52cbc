"""Where data, models and results lie: URIs to local paths, and results put in place whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from airflow_provider_finetune.runner.failures import UserError, is_disk_full

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")


def scheme(uri: str) -> str | None:
    """Return the scheme of ``uri`` in lower case, ``None`` for a plain path or a HuggingFace id."""
    found = _SCHEME.match(uri)
    return found.group(1).lower() if found else None


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
            f"{argument}={uri!r}: this version reads and writes local paths and file:// only",
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


def output_file(uri: str, argument: str, name: str) -> Path:
    """Return the file that an output means: itself where it has the suffix of ``name``, else ``name`` in it.

    :param uri: what the DAG author gave.
    :param argument: the operator's argument, for the message.
    :param name: the usual name, e.g. ``metrics.json``.
    """
    path = local_path(uri, argument)
    return path if path.suffix == Path(name).suffix else path / name


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
        ) from error


def ensure_replaceable(target: Path, needed: Iterable[Path] = ()) -> None:
    """Make sure that publishing a model to ``target`` puts away an earlier model at most.

    A model is a directory of files without directories, with a config and weights.

    :param target: where a model will be published; links are followed.
    :param needed: files and directories that the training needs.
    :raises UserError: something else lies there.
    """
    place = target.resolve()
    if place == place.parent:
        raise _in_use(f"{str(place)!r} is the root of the file system")
    for path in needed:
        if path.resolve().is_relative_to(place):
            raise _in_use(f"{target} would replace {path}, which the run needs")
    _ensure_no_more_than_a_model(place, target)


def _ensure_no_more_than_a_model(place: Path, named: Path) -> None:
    # One look, since another run may put its model there at this moment.
    try:
        with os.scandir(place) as listing:
            entries = {entry.name: entry.is_dir() for entry in listing}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        if not place.exists():
            # A part of the way is a file: that it cannot be written is said where writing is tried.
            return
        raise _in_use(f"{named} is a file") from error
    if entries and (any(entries.values()) or not _is_model(entries)):
        raise _in_use(f"{named} holds files that are no model of its own, and publishing would remove them")


def _is_model(names: Collection[str]) -> bool:
    return not {"config.json", "adapter_config.json"}.isdisjoint(names) and any(map(_is_weights, names))


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def holds_model(directory: Path) -> bool:
    """Say whether a model lies in ``directory``: a config and weights that are not empty. Nothing is loaded."""
    try:
        sizes = {entry.name: entry.stat().st_size for entry in directory.iterdir() if entry.is_file()}
    except OSError:
        return False
    return _is_model([name for name, size in sizes.items() if size])


def _in_use(why: str) -> UserError:
    cure = "Name a directory of its own in output_model, one that is new, empty or holds an earlier model"
    return UserError("output_in_use", f"output_model: {why}", cure)


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
