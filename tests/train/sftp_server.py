"""An SFTP server on this machine that lets one key in and serves the machine's own files."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from paramiko import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED, SFTP_OK, ECDSAKey, HostKeys, SFTPAttributes


class _Access(paramiko.ServerInterface):  # type: ignore[misc]
    """Lets whoever has a key in."""

    def __init__(self, key: ECDSAKey, transport: paramiko.Transport) -> None:
        self._key, self.transport = key, transport

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        return AUTH_SUCCESSFUL if key == self._key else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    """Answer with the code of an error instead of raising it."""

    def answer(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    return answer


class _Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
    """The files of this machine. What changes them is noted in ``asked``."""

    def __init__(self, server: _Access, asked: list[str], cut: set[str]) -> None:
        self._server, self._asked, self._cut = server, asked, cut

    @_told
    def list_folder(self, path: str) -> list[SFTPAttributes]:
        return [SFTPAttributes.from_stat(entry.stat(), entry.name) for entry in os.scandir(path)]

    @_told
    def stat(self, path: str) -> SFTPAttributes:
        return SFTPAttributes.from_stat(os.stat(path))

    lstat = stat

    @_told
    def open(self, path: str, flags: int, attr: SFTPAttributes) -> paramiko.SFTPHandle:
        handle = paramiko.SFTPHandle(flags)
        writes = bool(flags & os.O_WRONLY)
        if writes:
            self._asked.append(f"write {path}")
            if Path(path).name in self._cut:
                self._cut.remove(Path(path).name)
                self._server.transport.close()
        handle.readfile = handle.writefile = os.fdopen(os.open(path, flags, 0o644), "wb" if writes else "rb")
        return handle

    @_told
    def remove(self, path: str) -> int:
        return self._change("remove", os.remove, path)

    @_told
    def mkdir(self, path: str, attr: SFTPAttributes) -> int:
        return self._change("mkdir", os.mkdir, path)

    @_told
    def posix_rename(self, old: str, new: str) -> int:
        return self._change("rename", os.replace, old, new)

    def _change(self, name: str, change: Callable[..., None], *paths: str) -> int:
        self._asked.append(" ".join([name, *paths]))
        change(*paths)
        return SFTP_OK


@dataclass
class Sftp:
    """A server.

    * ``home``: a home whose ``.ssh`` knows it and has a key that is let in
    * ``asked``: what has changed files so far
    * ``cut``: names of files at whose first writing the connection breaks
    """

    url: str
    home: Path
    asked: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)


@contextmanager
def serving(home: Path) -> Iterator[Sftp]:
    """Serve, to whoever has the key that is put into ``home``."""
    known, users = ECDSAKey.generate(), ECDSAKey.generate()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    (home / ".ssh").mkdir(parents=True)
    users.write_private_key_file(str(home / ".ssh" / "id_ecdsa"))
    hosts = HostKeys()
    hosts.add(f"[127.0.0.1]:{port}", known.get_name(), known)
    hosts.save(str(home / ".ssh" / "known_hosts"))
    server = Sftp(f"sftp://trainer@127.0.0.1:{port}", home)
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            transports.append(transport := paramiko.Transport(connection))
            transport.add_server_key(known)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files, server.asked, server.cut)
            transport.start_server(event=threading.Event(), server=_Access(users, transport))

    thread = threading.Thread(target=serve)
    thread.start()
    yield server
    listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    listening.close()
    for transport in transports:
        transport.close()
