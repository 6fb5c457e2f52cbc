"""The HuggingFace hub: its names, which commit a revision is now, and why it has not given what was asked for.

Who may read is the token's affair that the environment brings (``HF_TOKEN``); it is never read here. What the hub's
libraries say is not passed on, neither in a message nor in the log: it names the addresses of its storage, which carry
signatures.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_finetune.contract.uris import hub_name
from airflow_provider_finetune.runner.failures import RunFailed, UserError, chain, is_disk_full
from airflow_provider_finetune.runner.storage import put_text


@dataclass(frozen=True)
class Repository:
    """A model or a data set on the hub.

    * ``kind``: ``model`` or ``dataset``
    * ``id``: ``organisation/name``
    * ``revision``: branch, tag or commit; ``None`` for the newest
    * ``argument``: the operator's argument that names it
    """

    kind: str
    id: str
    revision: str | None
    argument: str

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @property
    def named(self) -> str:
        """The name for people, with the beginning of the commit."""
        return self.id if self.revision is None else f"{self.id} (revision {self.revision[:7]})"

    def at(self, commit: str) -> Repository:
        """Return the same repository at one commit."""
        return replace(self, revision=commit)


def repository(kind: str, name: str, argument: str) -> Repository:
    """Read ``org/name@revision``, with or without ``hf://``.

    :param kind: ``model`` or ``dataset``.
    :param name: what the DAG author gave.
    :param argument: the operator's argument, for messages.
    :raises UserError: it has another form.
    """
    found = hub_name(name, kind)
    if found is None:
        raise UserError(
            f"{kind}_name_wrong",
            f"{argument}={name!r} is not the name of a {kind} on the HuggingFace hub",
            "Write organisation/name or hf://organisation/name, and a revision behind it as @revision",
        )
    return Repository(kind, *found, argument)


def ask(wanted: Repository) -> Any:
    """Ask the hub what it has; ``.sha`` is the commit, ``.siblings`` are the files, of a model with sizes.

    :param wanted: asked for under its revision.
    :raises RunFailed: see :func:`failure`.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import logging

    # Its warnings name signed addresses.
    logging.set_verbosity_error()
    try:
        return HfApi().repo_info(
            wanted.id,
            repo_type=wanted.kind,
            revision=wanted.revision,
            files_metadata=wanted.kind == "model",
            # Without one it would wait for ever.
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
    except Exception as error:
        raise failure(error, wanted) from None


def sizes(wanted: Repository) -> dict[str, int]:
    """Return names and sizes of the files of a model.

    :param wanted: the model, at its revision.
    :raises RunFailed: see :func:`failure`.
    """
    return {file.rfilename: file.size or 0 for file in ask(wanted).siblings}


def bytes_of(wanted: Repository, names: Iterable[str]) -> int:
    """Return how many bytes some files of a repository have together.

    :param wanted: at a commit.
    :param names: of the files.
    :raises RunFailed: see :func:`failure`.
    """
    from huggingface_hub import HfApi

    try:
        found = HfApi().get_paths_info(wanted.id, list(names), revision=wanted.revision, repo_type=wanted.kind)
    except Exception as error:
        raise failure(error, wanted) from None
    return sum(getattr(file, "size", 0) for file in found)


def download(wanted: Repository, names: Iterable[str], into: Path | None = None) -> Path:
    """Bring files of one commit into the cache of the hub's libraries, where they are not there yet.

    :param wanted: at a commit.
    :param names: of the files.
    :param into: a directory of this commit that takes them instead of the cache.
    :return: the directory of that commit in the cache, or ``into``.
    :raises RunFailed: see :func:`failure`.
    """
    from huggingface_hub import snapshot_download

    names = list(names)
    patterns = list(map(glob.escape, names))
    try:
        directory = Path(
            snapshot_download(
                wanted.id, repo_type=wanted.kind, revision=wanted.revision, allow_patterns=patterns, local_dir=into
            )
        )
    except Exception as error:
        raise failure(error, wanted) from None
    if not all((directory / name).is_file() for name in names):
        # It returns what an earlier try has left where the hub fails while it lists the files.
        raise _failed(wanted, "download_cut_off", "has not given all files")
    return directory


def remember(asked: Repository, snapshot: Path) -> None:
    """Note in the cache what a branch or tag is now, as the hub's libraries do: offline it is found by that name.

    :param asked: under the revision that was asked for.
    :param snapshot: what :func:`download` returned.
    """
    name = asked.revision or "main"
    if name != snapshot.name:
        put_text(snapshot.name, snapshot.parent.parent / "refs" / name)


def is_offline() -> bool:
    """Say whether ``HF_HUB_OFFLINE`` forbids to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached(wanted: Repository) -> Path:
    """Return the directory in the cache that holds a model, perhaps in part, named by its commit. Nobody is asked.

    :param wanted: the commit that its revision was when it was fetched counts.
    :raises UserError: the cache does not hold it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                wanted.id, revision=wanted.revision, allow_patterns=["config.json"], local_files_only=True
            )
        )
    except Exception as error:
        raise failure(error, wanted) from None


def blobs(snapshot: Path) -> Path:
    """Return the directory into which the files of a model arrive.

    :param snapshot: what :func:`download` returned.
    """
    return snapshot.parent.parent / "blobs"


def failure(error: BaseException, wanted: Repository, *, otherwise: RunFailed | None = None) -> BaseException:
    """Say why the hub has not given what was asked for.

    Its libraries raise their own exceptions around those of their HTTP library, whose name differs between releases:
    so the names of the classes count.

    :param error: what a library of the hub has raised.
    :param wanted: what was asked for.
    :param otherwise: what is said where neither the hub nor the way to it is the reason.
    :return: a :class:`RunFailed`; ``error`` itself where the machine's disk is full.
    """
    links = chain(error)
    if any(is_disk_full(link) for link in links):
        return error
    kinds = {kind.__name__ for link in links for kind in type(link).__mro__}
    answers = [answer for link in links if (answer := getattr(link, "response", None)) is not None]
    status = answers[0].status_code if answers else None
    return (
        _refused(wanted, kinds, status)
        or _broken(wanted, kinds, status, str(error))
        or otherwise
        or _failed(wanted, "hub_failed", "gave no answer that is one of a hub")
    )


def _refused(wanted: Repository, kinds: set[str], status: int | None) -> RunFailed | None:
    """What only the user can change."""
    kind = wanted.kind
    token = "secrets={'HF_TOKEN': 'conn:<connection id>'}, on a cluster 'HF_TOKEN': '<secret>/<key>'"
    # The latter is also raised where the hub did not answer, and then from the error of the connection.
    if "OfflineModeIsEnabled" in kinds or (
        "LocalEntryNotFoundError" in kinds and status is None and "TransportError" not in kinds
    ):
        cached = "this machine's cache does not hold it whole" if kind == "model" else "no cache is asked for data sets"
        return UserError(
            "hub_offline",
            f"{wanted.argument}: {wanted} is on the HuggingFace hub, HF_HUB_OFFLINE forbids to ask it, and {cached}",
            f"Unset HF_HUB_OFFLINE, or name a local directory in {wanted.argument}",
        )
    if "GatedRepoError" in kinds or status == 403:
        return UserError(
            f"{kind}_gated",
            f"The HuggingFace hub refuses the {kind} {wanted}: it needs rights that this account does not have",
            f"Accept its licence on the hub and hand over a token of that account: {token}",
        )
    if "RevisionNotFoundError" in kinds:
        return UserError(
            f"{kind}_revision_missing",
            f"The HuggingFace hub has the {kind} {wanted.id}, and no revision {wanted.revision!r} of it",
            "Name a branch, a tag or a whole commit, or leave @revision out for the newest",
        )
    if "RepositoryNotFoundError" in kinds:
        return UserError(
            f"{kind}_missing",
            f"The HuggingFace hub has no {kind} {wanted.id}, or hides it from this account",
            f"Check the name; what is private needs a token: {token}",
        )
    if status == 401:
        return UserError(
            "hub_token_refused",
            f"The HuggingFace hub does not accept the token it was asked with for the {kind} {wanted}",
            f"It has expired or was revoked: hand over a new one: {token}",
        )
    return None


def _broken(wanted: Repository, kinds: set[str], status: int | None, text: str) -> RunFailed | None:
    """What time can mend."""
    if status is not None:
        return _failed(wanted, "hub_failed", f"answered {status} when it was asked")
    if kinds & {"ConnectError", "ConnectTimeout", "ProxyError"}:
        return _failed(wanted, "hub_unreachable", "cannot be reached")
    if kinds & {"TransportError", "ConnectionError", "TimeoutError"} or "Consistency check failed" in text:
        return _failed(wanted, "download_cut_off", "has stopped in the middle of its answer")
    return None


def _failed(wanted: Repository, cause: str, what: str) -> RunFailed:
    return RunFailed(
        "infrastructure",
        cause,
        f"The HuggingFace hub at {_host()} {what} for the {wanted.kind} {wanted}",
        f"Check the network of this machine and HF_ENDPOINT, or name a local directory in {wanted.argument}",
        parameter=wanted.argument,
    )


def _host() -> str | None:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname
