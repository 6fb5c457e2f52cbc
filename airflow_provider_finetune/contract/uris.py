"""What a place is by its text alone: its scheme, what in it is secret, and how it may be shown."""

from __future__ import annotations

import re
from urllib.parse import unquote

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER_IS_NO_SECRET = frozenset({"abfs", "abfss", "wasb", "wasbs", "sftp", "ssh", "ftp", "hdfs", "webhdfs", "smb"})
"""Where a container or a user name stands before the ``@``, as the usual form has it."""

_SECRET_NAME = re.compile(r"signature|token|secret|passw|credential|api_?key|^(sig|sas|key|auth|code)$", re.I)
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_DATA_FILE = re.compile(r"\.(jsonl?|ndjson|csv|parquet|gz)$", re.I)

_SHORTEST_SECRET = 8
"""Characters; a shorter value is hardly a secret, and to mask it would make a log unreadable."""


def scheme(place: str) -> str | None:
    """Return the scheme of a URI in lower case, ``None`` for a path or a HuggingFace id.

    :param place: what a DAG author gave.
    """
    found = _SCHEME.match(place)
    return found.group(1).lower() if found else None


def hub_name(place: str, kind: str) -> tuple[str, str | None] | None:
    """Return id and revision of a repository on the HuggingFace hub, ``None`` where ``place`` names none.

    Names without an organisation, as old models have, are paths; and so is ``data/train.jsonl``.

    :param place: ``organisation/name@revision``, with or without ``hf://``, behind which ``models/`` or ``datasets/``
        may stand; of a data set ``?config=…&split=…`` may follow.
    :param kind: ``model`` or ``dataset``.
    """
    address = place.partition("?")[0] if kind == "dataset" else place
    if scheme(place) == "hf":
        address = address.removeprefix("hf://").removeprefix(f"{kind}s/")
    elif kind == "dataset" and _DATA_FILE.search(address):
        return None
    identity, at, revision = address.partition("@")
    if not _HUB_ID.fullmatch(identity) or bool(at) != bool(revision):
        return None
    return identity, revision or None


def is_remote(place: str) -> bool:
    """Return whether a place lies behind a network service: it is neither a path nor on a volume.

    :param place: what a DAG author gave; a HuggingFace id without ``hf://`` looks like a path.
    """
    return scheme(place) not in (None, "file", "pvc")


def has_credential(place: str) -> bool:
    """Return whether a key, a password or a token stands before the host of a URI.

    :param place: what a DAG author gave.
    """
    kind = scheme(place)
    if kind in (None, "pvc", "hf"):
        return False
    user, at, _ = _authority(place).rpartition("@")
    if at:
        return ":" in user or kind not in _USER_IS_NO_SECRET
    # A secret key may hold a slash: "s3://AKIA…:ab/cd@bucket". What stands there is no port, and no access point of S3.
    return kind != "oci" and re.fullmatch(r"(?!arn:)[^\[]*:(?!\d*$).*", _authority(place)) is not None


def shown(place: str) -> str:
    """Return a place as everybody may read it: a remote one without credentials, query and fragment.

    :param place: what a DAG author gave, or a result's URI.
    """
    if has_credential(place):
        return f"{scheme(place)}://***"
    # "#" and "?" are part of a path behind file:// and pvc://, and configuration and split behind hf://.
    return re.split(r"[?#]", place, maxsplit=1)[0] if is_remote(place) and scheme(place) != "hf" else place


def secrets_in(place: str) -> set[str]:
    """Return what in a URI gives access to it: signatures and tokens of its query, and what stands before its host.

    :param place: what a DAG author gave.
    :return: each as it stands there, and as the server reads it.
    """
    query = re.split(r"[?&#]", place)[1:]
    pairs = [pair.partition("=") for pair in query]
    found = {value for name, _, value in pairs if _SECRET_NAME.search(name)}
    if has_credential(place):
        found.update(_authority(place).rpartition("@")[0].split(":"))
    return {secret for raw in found for secret in (raw, unquote(raw)) if len(secret) >= _SHORTEST_SECRET}


def _authority(place: str) -> str:
    return re.split(r"[/?#]", place.partition("://")[2], maxsplit=1)[0]
