"""SFTP to servers that this machine knows, by fsspec's own class."""

from __future__ import annotations

from typing import Any


def to_known_hosts(kind: Any, *, connect: float, silence: float) -> Any:
    """Return fsspec's class for SFTP so that it speaks to the servers of ``~/.ssh/known_hosts`` alone.

    By itself it takes any key of any server; its option against that is not in the oldest release that is allowed, and
    reads no ``known_hosts``.

    :param kind: ``fsspec.implementations.sftp.SFTPFileSystem``.
    :param connect: seconds to connect, and again to be let in.
    :param silence: seconds after which a server counts as unreachable.
    """
    import paramiko

    class UnknownHostKey(paramiko.SSHException):
        """Found by its name, as what a library raises."""

    class Refuse(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            raise UnknownHostKey

    class KnownHosts(kind):
        def _connect(self) -> None:
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys()
            self.client.set_missing_host_key_policy(Refuse())
            try:
                self.client.connect(self.host, timeout=connect, auth_timeout=connect, **self.ssh_kwargs)
            except paramiko.SSHException as error:
                # That there was no key to try is said by no type of its own.
                keyless = type(error) is paramiko.SSHException and self.client.get_transport().is_active()
                self.client.close()
                if keyless:
                    raise paramiko.AuthenticationException from error
                raise
            self.ftp = self.client.open_sftp()
            self.ftp.get_channel().settimeout(silence)

    return KnownHosts
