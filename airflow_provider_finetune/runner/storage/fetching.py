"""Data and models from afar, fetched whole into a local directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_provider_finetune.contract.uris import scheme, shown
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.storage.connecting import connect
from airflow_provider_finetune.runner.storage.faults import Fault, guarded
from airflow_provider_finetune.runner.storage.uris import WEB
from airflow_provider_finetune.runner.transfer import size as size_in_words

_SECONDS_BETWEEN_LINES = 15.0


def fetch(
    uri: str,
    argument: str,
    into: Path,
    say: Callable[[str], None],
    *,
    what: str = "dataset",
    wanted: Callable[[str], bool] = lambda name: True,
) -> list[Path]:
    """Fetch the file that ``uri`` names, or all files below it with their relative names.

    :param uri: http(s), which names one file, s3 or another scheme of fsspec.
    :param argument: the operator's argument, for messages.
    :param into: directory, made where it is missing; what is in it under the same name is replaced.
    :param say: takes the progress.
    :param what: ``dataset`` or ``model``, the beginning of some causes.
    :param wanted: which of several files, by relative name.
    :return: the files, in the order of their names.
    :raises UserError: ``<what>_missing``, ``<what>_unreadable`` (no right, expired, no credentials),
        ``unsupported_uri`` or ``package_missing``.
    :raises RunFailed: ``source_unreachable``, ``download_cut_off``, or the files do not fit on the disk.
    """
    source = _Source(uri, argument, what)
    into.mkdir(parents=True, exist_ok=True)
    if scheme(uri) in WEB:
        return [_fetch_from_web(source, into, say)]
    sizes = {name: size for name, size in source.list().items() if wanted(name)}
    if not sizes:
        raise source.failure(Fault("missing", "there is no such object, and none below it", "Check the address"))
    total = sum(size or 0 for size in sizes.values())
    ensure_fits(total, into, source.name)
    say(f"fetching {source.name}: {_count(len(sizes))}, {size_in_words(total)}")
    progress = Progress(f"fetching {source.name}", say, total)
    return [_fetch_one(source, name, size, into / name, progress) for name, size in sizes.items()]


def sizes(uri: str, argument: str, *, what: str = "dataset") -> dict[str, int | None]:
    """Return the relative names and sizes in bytes of all files below ``uri``; a size may be unknown.

    :param uri: as for :func:`fetch`.
    :param argument: the operator's argument, for messages.
    :param what: as for :func:`fetch`.
    :raises RunFailed: as :func:`fetch`.
    """
    source = _Source(uri, argument, what)
    found = source.list()
    if not found:
        raise source.failure(Fault("missing", "there is no such object, and none below it", "Check the address"))
    return found


class _Source:
    """A remote place that is read."""

    def __init__(self, uri: str, argument: str, what: str) -> None:
        self.name = shown(uri)
        self._argument, self._what = argument, what
        self.store, self.path = connect(uri, argument, self.failure)
        self._keys: dict[str, str] = {}

    def failure(self, fault: Fault) -> RunFailed:
        """Return what ``fault`` means for a run that reads here."""
        message = f"{self._argument}: {self.name} cannot be read: {fault.why}"
        if fault.kind == "unreachable":
            cure = fault.cure or "Try again; if it stays so, check the address and the network of the training"
            return RunFailed("infrastructure", "source_unreachable", message, cure, parameter=self._argument)
        if fault.kind == "cut_off":
            return cut_off(message)
        cause = {"missing": f"{self._what}_missing", "refused": f"{self._what}_unreadable"}
        cure = fault.cure or "Name another place"
        return UserError(cause.get(fault.kind, "unsupported_uri"), message, cure, parameter=self._argument)

    def list(self) -> dict[str, int | None]:
        """Return relative names and sizes, in the order of the names; none where there is nothing."""
        found = guarded(self._find, self.failure)
        root = self.path.rstrip("/")
        for key, entry in sorted(found.items()):
            if entry.get("type") == "directory" or key.endswith("/"):
                continue
            name = PurePosixPath(root).name if key == root else key.removeprefix(f"{root}/")
            if any(part in ("", ".", "..") for part in name.split("/")):
                raise self.failure(Fault("unsupported", f"{name!r} is no name for a file", "Rename that object"))
            self._keys[name] = key
        return {name: found[key].get("size") for name, key in self._keys.items()}

    def _find(self) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = self.store.find(self.path, detail=True)
            return found
        except PermissionError:
            # Who may read an object need not be allowed to list; and only a refused listing says why.
            with suppress(Exception):
                return {self.path: self.store.info(self.path)}
            raise

    def get(self, key: str | None, target: Path, progress: Progress) -> None:
        """Fetch one file; what has come of it is removed where it does not come whole."""
        remote = self.path if key is None else self._keys[key]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            guarded(lambda: self.store.get_file(remote, str(target), callback=progress), self.failure)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _fetch_one(source: _Source, name: str, size: int | None, target: Path, progress: Progress) -> Path:
    source.get(name, target, progress)
    arrived = target.stat().st_size
    if size is not None and arrived != size:
        target.unlink()
        raise cut_off(f"{source.name}: {name} has {size} bytes, and {arrived} have arrived")
    return target


def _fetch_from_web(source: _Source, into: Path, say: Callable[[str], None]) -> Path:
    name = PurePosixPath(unquote(urlsplit(source.name).path)).name
    if not name or source.name.endswith("/") or name == ".." or "\0" in name:
        raise source.failure(
            Fault("unsupported", "the address names no file", "Name one file; a directory has no list")
        )
    target = into / name
    say(f"fetching {source.name}")
    progress = Progress(f"fetching {source.name}", say, fits=partial(ensure_fits, into=into, name=source.name))
    # That all announced bytes have come is looked after by aiohttp.
    source.get(None, target, progress)
    say(f"fetched {source.name}: {size_in_words(target.stat().st_size)}")
    return _without_false_suffix(target)


def _without_false_suffix(path: Path) -> Path:
    """Take ``.gz`` off a file that a server has sent as compressed on the way, so that it has come unpacked."""
    if path.suffix != ".gz":
        return path
    with path.open("rb") as file:
        if file.read(2) in (b"\x1f\x8b", b""):
            return path
    return path.replace(path.with_suffix(""))


def cut_off(message: str) -> RunFailed:
    """Return the failure of a download that did not come whole."""
    return RunFailed("infrastructure", "download_cut_off", message, "Try again; nothing of it was used")


def ensure_fits(total: int, into: Path, name: str) -> None:
    """Make sure that a download has room.

    :param total: its bytes.
    :param into: a directory on the disk that takes it.
    :param name: of what is fetched, for people.
    :raises RunFailed: it has not.
    """
    free = shutil.disk_usage(into).free
    if total > free:
        raise RunFailed(
            "resources",
            "disk_full",
            f"{name} has {size_in_words(total)}, and {into} has {size_in_words(free)} free",
            "Free space under the work directory, or put it on a larger disk (pvc_path)",
        )


class Progress:
    """Says how far a transfer has come, as fsspec's callbacks do; seldom, and never for a short one.

    What ``fits`` is, is called with a size that only the server tells, before the first byte is written.
    """

    def __init__(
        self,
        doing: str,
        say: Callable[[str], None],
        total: int | None = None,
        fits: Callable[[int], None] = lambda total: None,
    ) -> None:
        self._doing, self._say, self._total, self._fits = doing, say, total, fits
        self._done, self._said = 0, time.monotonic()

    def set_size(self, size: int | None) -> None:
        """Take the size of one file, which is the total where none was given."""
        if self._total is None and size:
            self._total = size
            self._fits(size)

    def relative_update(self, more: int = 1) -> None:
        """Count bytes."""
        self._done += more
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = f" of {size_in_words(self._total)}" if self._total else ""
            self._say(f"{self._doing}: {size_in_words(self._done)}{of}")


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"
