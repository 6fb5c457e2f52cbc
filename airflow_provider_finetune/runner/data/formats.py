"""In which format the files of a data set are, by their names and, where these say little, by their first bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from airflow_provider_finetune.runner.data.files import Damaged, opened
from airflow_provider_finetune.runner.data.source import Source
from airflow_provider_finetune.runner.failures import UserError

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

KNOWN = f"{', '.join(_FORMATS)}, each also with .gz"


def of_split(files: Mapping[str, Path], *, name: str, argument: str) -> Source:
    """Recognise the format of files of which all are to be read.

    :param files: local files by their labels, each named as one of a known format.
    :param name: of the data set, for people.
    :param argument: the operator's argument, for messages.
    :raises UserError: one cannot be read, or there are several formats.
    """
    for path in files.values():
        ensure_readable(path, argument, name)
    formats = {label: _format_of_content(path, f"{argument}={name!r}: {label}") for label, path in files.items()}
    if len(set(formats.values())) > 1:
        examples = {kind: label for label, kind in reversed(formats.items())}
        listing = " and ".join(f"{kind} ({label})" for kind, label in sorted(examples.items()))
        raise UserError(
            "dataset_formats_mixed",
            f"{argument}={name!r} has files of several formats: {listing}",
            "Name one of the files, or put those of one format into a directory of their own",
        )
    return Source(name, next(iter(formats.values())), tuple(files.values()), tuple(files))


def format_of(name: str) -> str | None:
    """Return the format that a file is named as, ``None`` for one that is not known."""
    return _FORMATS.get(Path(name.lower().removesuffix(".gz")).suffix)


def _format_of_content(path: Path, where: str) -> str:
    """Return the format; a file named ``.json`` often holds a row a line."""
    kind = format_of(path.name) or ""
    if kind != "json":
        return kind
    try:
        with opened(path) as (_, content):
            head = (content.read(4096) or b"").removeprefix(b"\xef\xbb\xbf").lstrip()
    except Damaged:
        # Said when it is read, with how far it can be.
        return "json"
    if not head.startswith(b"{"):
        return "json"
    first_line, goes_on, _ = head.partition(b"\n")
    if goes_on and not first_line.rstrip().endswith(b"}"):
        raise UserError(
            "dataset_format",
            f"{where} is one JSON object over several lines, and neither an array of rows nor a row a line",
            "Write its rows as an array, or each on a line of its own; of rows below a key write their list alone",
        )
    return "jsonl"


def ensure_readable(path: Path, argument: str, dataset: str) -> None:
    """Make sure that a file or directory can be read.

    :param path: which.
    :param argument: the operator's argument, for messages.
    :param dataset: the data set, for messages.
    :raises UserError: it is not there, or this user may not read it.
    """
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()
    except FileNotFoundError as error:
        raise UserError(
            "dataset_missing",
            f"{argument}={dataset!r}: {path} does not exist",
            "Check the path; a task that makes it must run before this one, and write to the same disk or claim",
        ) from error
    except OSError as error:
        raise UserError(
            "dataset_unreadable",
            f"{argument}={dataset!r}: {path} cannot be read: {error.strerror or error}",
            "Give the user that runs the training the right to read it",
        ) from error
