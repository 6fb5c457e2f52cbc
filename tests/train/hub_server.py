"""A HuggingFace hub on this machine: as much of its API as ``huggingface_hub`` and ``datasets`` use to read.

Started in a thread and found through ``HF_ENDPOINT``. Files that are large for a test are served from a storage at an
address with a signature, as the real hub does.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

SIGNATURE = "signature-nobody-may-see"
TOKEN = "hf_token-nobody-may-see"
LARGE = 20_000
"""Bytes from which a file lies in the storage."""


@dataclass
class Repository:
    """A model or a data set: its commits, the branches and tags, and what is wrong with it.

    * ``gated``: only :data:`TOKEN` may read it
    * ``status``: answered to everything
    * ``cut``: names of files of which only the first half ever comes
    * ``seconds``: that each 10,000 bytes of a large file take
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    status: int | None = None
    cut: frozenset[str] = frozenset()
    seconds: float = 0.0

    def commit(self, files: Mapping[str, bytes], *names: str) -> str:
        """Add a commit, to which ``names`` point; ``main`` where there are none."""
        content = b"".join(name.encode() + hashlib.sha256(data).digest() for name, data in sorted(files.items()))
        sha = hashlib.sha1(content + str(len(self.commits)).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs.update(dict.fromkeys(names or ("main",), sha))
        return sha


class Hub:
    """The server. ``requests`` are those that came: method and path."""

    def __init__(self) -> None:
        self.models: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        """What ``HF_ENDPOINT`` is set to."""
        return f"http://127.0.0.1:{self.port}"

    def model(self, name: str, files: Mapping[str, bytes] | None = None) -> Repository:
        """Return the model of this name, which is made where it is missing, with ``files`` as a further commit."""
        return self._repository(self.models, name, files)

    def dataset(self, name: str, files: Mapping[str, bytes] | None = None) -> Repository:
        """As :meth:`model`."""
        return self._repository(self.datasets, name, files)

    @staticmethod
    def _repository(there: dict[str, Repository], name: str, files: Mapping[str, bytes] | None) -> Repository:
        repository = there.setdefault(name, Repository())
        if files is not None:
            repository.commit(files)
        return repository

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub without models and data sets."""
    with Hub() as hub:
        yield hub


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        """Nothing: pytest shows what the client says."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(address.path)}")
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        try:
            self._route([unquote(part) for part in address.path.strip("/").split("/")], parse_qs(address.query), form)
        except _Refused as refused:
            headers = {name: value for name, value in refused.headers.items() if value}
            self._send(refused.status, json.dumps({"error": refused.headers["X-Error-Message"]}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, parts: list[str], query: dict[str, list[str]], form: dict[str, list[str]]) -> None:
        if parts[0] == "storage":
            return self._send_content(parts, query)
        if parts[0] == "api":
            kind, name, rest = parts[1], "/".join(parts[2:4]), parts[4:]
            repository = self._open(kind, name)
            revision = rest[1] if len(rest) > 1 else "main"
            sha = self._commit(repository, revision)
            if rest[:1] in ([], ["revision"]):
                return self._send_json(_info(name, sha, repository.commits[sha]))
            if rest[0] == "tree":
                return self._send_json(_tree(repository.commits[sha], "/".join(rest[2:]), query))
            if rest[0] == "paths-info":
                return self._send_json(_paths(repository.commits[sha], form.get("paths", [])))
            raise _Refused(404)
        kind, parts = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        repository = self._open(kind, name)
        sha = self._commit(repository, revision)
        if file not in repository.commits[sha]:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        self._send_file(kind, name, sha, file)

    def _open(self, kind: str, name: str) -> Repository:
        repository = getattr(self.hub, kind, {}).get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        if repository is None:
            # The real hub does not tell strangers which names are taken.
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.status:
            raise _Refused(repository.status, message="out of order")
        if repository.gated and not token:
            raise _Refused(401, "GatedRepo", "Access to this model is restricted")
        if repository.gated and name.startswith("refused/"):
            raise _Refused(403, "GatedRepo", "You are not in the authorized list")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _send_file(self, kind: str, name: str, sha: str, file: str) -> None:
        content = getattr(self.hub, kind)[name].commits[sha][file]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        if len(content) < LARGE:
            return self._send_part(content, headers)
        # Another host, as the hub's storage is: no token may be sent there.
        where = f"http://localhost:{self.hub.port}/storage/{kind}/{name}/{sha}/{file}?X-Amz-Signature={SIGNATURE}"
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"], "Location": where}
        self._send(302, b"", {**headers, **linked})

    def _send_content(self, parts: list[str], query: dict[str, list[str]]) -> None:
        kind, name, sha, file = parts[1], "/".join(parts[2:4]), parts[4], "/".join(parts[5:])
        if query.get("X-Amz-Signature") != [SIGNATURE] or self.headers.get("Authorization"):
            raise _Refused(403, message="signature wrong, or a token that is none of the storage's business")
        repository = getattr(self.hub, kind)[name]
        content = repository.commits[sha][file]
        self._send_part(content, {"ETag": f'"{_etag(content)}"'}, repository.seconds, file in repository.cut)

    def _send_part(self, content: bytes, headers: dict[str, str], seconds: float = 0.0, cut: bool = False) -> None:
        start, end, status = 0, len(content), 200
        if (asked := self.headers.get("Range")) is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last) + 1 if last else end, end), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        part = content[start:end]
        self._head(status, len(part), headers)
        if self.command == "HEAD":
            return
        if cut:
            part = content[start : max(start, len(content) // 2)]
            self.close_connection = True
        for begin in range(0, len(part), 10_000):
            self.wfile.write(part[begin : begin + 10_000])
            time.sleep(seconds)

    def _send_json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _info(name: str, sha: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    siblings = [{"rfilename": file, "size": len(content)} for file, content in sorted(files.items())]
    return {"id": name, "modelId": name, "sha": sha, "private": False, "tags": [], "siblings": siblings}


def _file(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}


def _directory(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _tree(files: Mapping[str, bytes], below: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
    start = f"{below}/" if below else ""
    inside = {path: content for path, content in sorted(files.items()) if path.startswith(start)}
    if below and not inside:
        raise _Refused(404, "EntryNotFound", "Path not found")
    recursive = query.get("recursive", ["false"])[0].lower() == "true"
    folders = {path[: place + len(start)] for path in inside if (place := path[len(start) :].find("/")) >= 0}
    direct = [_file(path, content) for path, content in inside.items() if recursive or "/" not in path[len(start) :]]
    return [_directory(folder) for folder in sorted(folders)] + direct


def _paths(files: Mapping[str, bytes], paths: list[str]) -> list[dict[str, Any]]:
    found = [_file(path, files[path]) for path in paths if path in files]
    return found + [_directory(path) for path in paths if any(file.startswith(f"{path}/") for file in files)]
