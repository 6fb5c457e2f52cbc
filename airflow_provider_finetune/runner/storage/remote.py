"""Results in a store behind fsspec, which has no directories and cannot rename.

A reader must not find half a model there, and a run that was killed must not block the next one. So the config, which
every loader reads first, is removed before anything else and written last; and while a model is on its way, an object
beside it names all files that may be there, so that the next run knows what it may put away.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from airflow_provider_finetune.contract.uris import scheme, shown
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.storage.connecting import connect, path_in
from airflow_provider_finetune.runner.storage.faults import Fault, guarded
from airflow_provider_finetune.runner.storage.fetching import Progress
from airflow_provider_finetune.runner.storage.models import CONFIGS, in_use, is_model, is_part, is_whole, paths
from airflow_provider_finetune.runner.storage.uris import is_remote

_PROBE = ".finetune-writable"
_ARRIVING = ".finetune-arriving"
_OURS = {_PROBE, _ARRIVING}

_WITHOUT_DIRECTORIES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Here a directory is nothing that could be made; fsspec would make the bucket."""

_T = TypeVar("_T")


class RemotePlace:
    """An object, or all objects below a prefix, see :class:`~airflow_provider_finetune.runner.storage.Place`.

    :param uri: of a scheme that fsspec writes.
    :param argument: the operator's argument, for messages.
    :param is_file: one object is meant.
    """

    path = None

    def __init__(self, uri: str, argument: str, *, is_file: bool = False) -> None:
        self.uri = shown(uri)
        self._argument, self._is_file = argument, is_file
        self._store, key = connect(uri, argument, lambda fault: self._failure(fault, "reached"))
        self._key = key.rstrip("/")

    def child(self, name: str) -> RemotePlace:
        return RemotePlace(f"{self.uri.rstrip('/')}/{name}", self._argument)

    def ensure_writable(self, say: Callable[[str], None]) -> None:
        probe = f"{self._key.rpartition('/')[0] if self._is_file else self._key}/{_PROBE}"
        self._put(probe, b"")
        try:
            self._remove(probe)
        except RunFailed as refused:
            if not self._is_file and set(self._sizes()) - _OURS:
                raise UserError(
                    "output_not_writable",
                    f"{self._argument}: the model in {self.uri} can be written but not removed, so not be replaced",
                    "Give the credentials the right to delete, or name a prefix where no model lies",
                ) from refused
            say(f"{self._argument}: nothing can be removed from {self.uri}, so the empty object {_PROBE} stays there")

    def ensure_replaceable(self, needed: Iterable[Path | str] = ()) -> None:
        for other in needed:
            if isinstance(other, str) and is_remote(other) and self._holds(other):
                raise in_use(self._argument, f"{self.uri} would replace {shown(other)}, which the run needs")
        self._replaceable()

    def put_model(self, directory: Path, say: Callable[[str], None]) -> None:
        arriving = {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths(directory)}
        leaving = self._replaceable()
        mark = "\n".join([uuid.uuid4().hex, *sorted({*arriving, *leaving} - _OURS)]).encode()
        self._put(f"{self._key}/{_ARRIVING}", mark)
        for name in leaving & set(CONFIGS):
            self._remove(f"{self._key}/{name}")
        weights = {name: size for name, size in arriving.items() if name not in CONFIGS}
        self._upload(directory, weights, say)
        if self._read_mark() != mark:
            raise self._torn("another run publishes there at the same time")
        for name in leaving - set(arriving) - set(CONFIGS) - _OURS:
            self._remove(f"{self._key}/{name}")
        self._ensure_there(weights)
        self._upload(directory, {name: size for name, size in arriving.items() if name in CONFIGS}, say)
        self._ensure_there(arriving)
        try:
            self._remove(f"{self._key}/{_ARRIVING}")
        except RunFailed as error:
            say(f"{error.failure.message}. The model there is whole, and {_ARRIVING} stays, which no loader reads")

    def put_text(self, text: str) -> None:
        if scheme(self.uri) in _WITHOUT_DIRECTORIES:
            # An object is there as a whole or not at all.
            self._put(self._key, text.encode())
            return
        arriving = f"{self._key.rpartition('/')[0]}/.arriving-{uuid.uuid4().hex[:12]}"

        def take_place() -> None:
            # Not every protocol renames over a file.
            if self._store.exists(self._key):
                self._store.rm_file(self._key)
            self._store.mv(arriving, self._key)

        try:
            self._put(arriving, text.encode())
            self._do(take_place)
        except RunFailed:
            with suppress(RunFailed):
                self._remove(arriving)
            raise

    def holds_model(self) -> bool:
        return is_whole(self._sizes())

    def _holds(self, other: str) -> bool:
        path = path_in(self._store, other)
        return path is not None and f"{path.rstrip('/')}/".startswith(f"{self._key}/")

    def _replaceable(self) -> set[str]:
        """Return the names of the files that lie there and may be put away."""
        sizes = self._sizes()
        names = set(sizes)
        foreign = names - set(self._read_mark().decode().split("\n")) if _ARRIVING in names else names
        foreign -= _OURS
        if not all(map(is_part, foreign)) or (foreign and not is_model(names)):
            raise in_use(
                self._argument,
                f"{self.uri} holds files that are no model of its own, and publishing would remove them",
            )
        return names - {_PROBE}

    def _sizes(self) -> dict[str, int]:
        """Return the sizes of all that lies below the prefix, by relative name."""

        def find() -> dict[str, int]:
            found = self._store.find(self._key, detail=True)
            return {
                key.removeprefix(f"{self._key}/"): entry["size"] or 0
                for key, entry in found.items()
                if key.startswith(f"{self._key}/") and not key.endswith("/")
            }

        return self._do(find, "read")

    def _ensure_there(self, expected: Mapping[str, int]) -> None:
        there = {name: size for name, size in self._sizes().items() if name not in _OURS}
        if there != expected:
            wrong = sorted(name for name in {*there, *expected} if there.get(name) != expected.get(name))
            raise self._torn(f"after the upload these files differ from the trained ones: {', '.join(wrong)}")

    def _torn(self, why: str) -> RunFailed:
        return RunFailed(
            "infrastructure",
            "upload_torn",
            f"{self._argument}: the model in {self.uri} is not whole: {why}",
            "Try again, with a place of its own for each run",
        )

    def _upload(self, directory: Path, sizes: Mapping[str, int], say: Callable[[str], None]) -> None:
        progress = Progress(f"publishing to {self.uri}", say, sum(sizes.values()))

        keys = {name: f"{self._key}/{name}" for name in sorted(sizes)}

        def put_all() -> None:
            for name, key in keys.items():
                self._store.put_file(str(directory / name), key, callback=progress)

        for parent in {key.rpartition("/")[0] for key in keys.values()}:
            self._make_directory(parent)
        self._do(put_all)

    def _put(self, key: str, content: bytes) -> None:
        self._make_directory(key.rpartition("/")[0])
        self._do(lambda: self._store.pipe_file(key, content))

    def _make_directory(self, key: str) -> None:
        if scheme(self.uri) not in _WITHOUT_DIRECTORIES:
            self._do(lambda: self._store.makedirs(key, exist_ok=True))

    def _remove(self, key: str) -> None:
        self._do(lambda: self._store.rm_file(key), "cleared")

    def _read_mark(self) -> bytes:
        def read() -> bytes:
            try:
                return bytes(self._store.cat_file(f"{self._key}/{_ARRIVING}"))
            except FileNotFoundError:
                return b""

        return self._do(read, "read")

    def _do(self, call: Callable[[], _T], done: str = "written") -> _T:
        return guarded(call, lambda fault: self._failure(fault, done))

    def _failure(self, fault: Fault, done: str) -> RunFailed:
        message = f"{self._argument}: {self.uri} cannot be {done}: {fault.why}"
        if fault.kind in ("unreachable", "cut_off"):
            cure = fault.cure or "Try again; if it stays so, check the address and the network of the training"
            return RunFailed("infrastructure", "output_unreachable", message, cure, parameter=self._argument)
        if fault.kind == "unsupported":
            cure = "Name a local path or a store that can be written, such as s3://"
            return UserError("unsupported_uri", message, cure, parameter=self._argument)
        cure = fault.cure or "Name another place"
        return UserError("output_not_writable", message, cure, parameter=self._argument)
