"""What was asked of the API server, in the words of Kubernetes: an error must name it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request in the words of Kubernetes. ``secrets``: values sent in it that no message may show."""

    conn_id: str
    verb: str
    resource: str
    group: str = ""
    namespace: str | None = None
    name: str | None = None
    secrets: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        place = f" in namespace {self.namespace!r}" if self.namespace else ""
        return f"{self.verb} {self.resource}{name}{place}, by connection {self.conn_id!r}"

    @property
    def object(self) -> str:
        """The object, or the kind of object, in a sentence."""
        kind = _KINDS.get(self.resource, self.resource)
        return f"{kind} {self.name!r}" if self.name else kind


_KINDS = {"trainjobs": "TrainJob", "configmaps": "ConfigMap", "pods": "pod", "pods/log": "the log of pod"}
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<part>[^/]+))?)?"
)


def asked(
    conn_id: str, method: str, path: str, *, name: str | None = None, watch: bool = False, secrets: Iterable[str] = ()
) -> Asked:
    """Read a request's meaning from its path.

    :param conn_id: connection that it goes through.
    :param method: HTTP method.
    :param path: path of an API object or collection.
    :param name: name of the object that is created, which no path has.
    :param watch: whether changes are asked for.
    :param secrets: values in its body that no message may show.
    """
    found = _PATH.fullmatch(path)
    parts: Mapping[str, str | None] = found.groupdict() if found else {"resource": path}
    reading = "watch" if watch else "get" if parts.get("name") else "list"
    resource = parts["resource"] or path
    return Asked(
        conn_id=conn_id,
        verb=_VERBS.get(method, reading),
        resource=f"{resource}/{parts['part']}" if parts.get("part") else resource,
        group=parts.get("group") or "",
        namespace=_unquoted(parts.get("namespace")),
        name=name or _unquoted(parts.get("name")),
        secrets=tuple(secrets),
    )


def _unquoted(text: str | None) -> str | None:
    return unquote(text) if text else None
