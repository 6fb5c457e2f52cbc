"""Finding a data set: a file, a directory, what another library has saved, or what must be fetched first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_finetune.contract.uris import hub_name
from airflow_provider_finetune.runner.data import splits
from airflow_provider_finetune.runner.data.formats import KNOWN, ensure_readable, format_of, of_split
from airflow_provider_finetune.runner.data.source import Source
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.storage import local_path, scheme

if TYPE_CHECKING:
    import pyarrow

_OF_THE_LIBRARY = frozenset(["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"])
"""What ``datasets`` writes beside the rows."""

_ROWS_OF_A_TABLE = 1000

Say = Callable[[str], None]


def locate(
    dataset: str,
    *,
    argument: str = "dataset",
    scratch: Path,
    say: Say,
    trust_remote_code: bool = False,
) -> Source:
    """Find a data set, and fetch it where it lies behind a network.

    :param dataset: path, URI, or id of a data set on a HuggingFace hub; of a directory the files are taken that are in
        one format and, where their names tell splits apart, those of ``train``.
    :param argument: the operator's argument, for messages.
    :param scratch: directory for what is fetched.
    :param say: is told what is fetched and left out.
    :param trust_remote_code: whether a data set's own program may run.
    :raises UserError: it is missing, cannot be read, or is in no known format.
    """
    kind = scheme(dataset)
    if kind == "pvc":
        raise UserError(
            "unsupported_uri",
            f"{argument}={dataset!r}: a claim is mounted by a launcher on a cluster, and this process has none mounted",
            "Name the path under which the volume is mounted here",
        )
    if kind == "hf" or (kind is None and hub_name(dataset, "dataset") and not local_path(dataset, argument).exists()):
        from airflow_provider_finetune.runner.data import hub

        return hub.dataset(dataset, argument=argument, scratch=scratch, say=say, trust_remote_code=trust_remote_code)
    if kind not in (None, "file"):
        return _fetched(dataset, argument, scratch, say)
    path = local_path(dataset, argument)
    ensure_readable(path, argument, dataset)
    if path.is_dir():
        return _of_directory(path, name=str(path), argument=argument, say=say)
    return of_files([path], name=str(path), argument=argument, say=say)


def _fetched(dataset: str, argument: str, scratch: Path, say: Say) -> Source:
    from airflow_provider_finetune.runner.storage import fetch, shown

    paths = fetch(dataset, argument, scratch, say)
    if len(paths) == 1:
        return of_files(paths, name=shown(dataset), argument=argument, say=say)
    return _of_directory(scratch, name=shown(dataset), argument=argument, say=say)


def _of_directory(directory: Path, *, name: str, argument: str, say: Say) -> Source:
    if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
        return _saved(directory, name, argument, say)
    paths = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )
    return of_files(paths, name=name, argument=argument, say=say, root=directory)


def of_files(paths: Sequence[Path], *, name: str, argument: str, say: Say, root: Path | None = None) -> Source:
    """Recognise the format of files by their names.

    :param paths: local files; those of other splits than ``train``, and those of no known format beside others, are
        left out.
    :param name: of the data set, for people.
    :param argument: the operator's argument, for messages.
    :param say: is told what is left out.
    :param root: what their labels are relative to.
    :raises UserError: there is none of a known format, or there are several formats.
    """
    labels = {path: _label(path, root) for path in paths}
    known = [path for path in paths if format_of(path.name) and path.name not in _OF_THE_LIBRARY]
    if not known:
        what = "has no file of a known format" if root else "is no file of a known format"
        raise UserError(
            "dataset_format",
            f"{argument}={name!r} {what}",
            f"Known are {KNOWN}, and what datasets.save_to_disk() writes",
        )
    taken = splits.of_training([labels[path] for path in known], name, argument, say)
    files = {labels[path]: path for path in known if labels[path] in taken}
    source = of_split(files, name=name, argument=argument)
    return source if len(files) == 1 and root is None else replace(source, name=f"{name} ({len(files)} files)")


def _label(path: Path, root: Path | None) -> str:
    label = path.relative_to(root).as_posix() if root else path.name
    # A name on a disk may be bytes that are no text.
    return label.encode(errors="replace").decode()


def _saved(directory: Path, name: str, argument: str, say: Say) -> Source:
    """Return what ``datasets.save_to_disk()`` has written; of several splits those of ``train``, all of them."""
    import datasets

    try:
        data: Any = datasets.load_from_disk(str(directory))
    except Exception as error:
        raise UserError(
            "dataset_broken",
            f"{argument}={name!r}: what datasets.save_to_disk() has written cannot be read ({type(error).__name__})",
            "Write it again; its task must have ended before this one begins",
        ) from error
    identity: dict[str, Any] = {}
    if isinstance(data, datasets.DatasetDict):
        cure = f"Name the directory of the split to train on: {name.rstrip('/')}/<split>"
        taken = splits.of_training(list(data), name, argument, say, cure)
        data, identity = _joined(data, taken, f"{argument}={name!r}", cure), {"split": "+".join(taken)}

    def tables() -> Iterator[pyarrow.Table]:
        yield from data.with_format("arrow").iter(batch_size=_ROWS_OF_A_TABLE)

    return Source(name, "table", tables=tables, identity=identity)


def _joined(data: Any, taken: Sequence[str], where: str, cure: str) -> Any:
    import datasets

    try:
        return datasets.concatenate_datasets([data[split] for split in taken])
    except ValueError as error:
        raise UserError(
            "dataset_split_unknown",
            f"{where} has the splits {', '.join(taken)} to train on, and columns of one name are of different types",
            cure,
        ) from error
