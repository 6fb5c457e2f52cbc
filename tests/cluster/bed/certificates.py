"""The cluster's own certificate authority: everything speaks TLS, and clients are known by their certificates."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=30)


class Authority:
    """Signs certificates into a folder, each as ``NAME.crt`` beside its ``NAME.key``.

    :param folder: made here; it also gets ``ca.crt``, and ``service-accounts.key``, which signs tokens.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "ca.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test cluster")])
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        authority = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.path.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        self._write_key("service-accounts", ec.generate_private_key(ec.SECP256R1()))

    def issue(self, name: str, organisation: str = "", hosts: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """Make a certificate that a server and a client can show.

        :param name: the user whom Kubernetes sees, or any name for a server.
        :param organisation: the group whom Kubernetes sees.
        :param hosts: names under which a server is reached, beside 127.0.0.1 and localhost.
        :returns: certificate and key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organisation:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
        names = [x509.DNSName(host) for host in ("localhost", *hosts)]
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = self._builder(x509.Name(attributes), key).add_extension(both, critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([*names, loopback]), critical=False)
        stem = name.replace(":", "-")
        path = self.folder / f"{stem}.crt"
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path, self._write_key(stem, key)

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + LIFETIME)
        )

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self.folder / f"{name}.key"
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(*pem))
        return path


def kubeconfig(path: Path, server: str, authority: Path, user: dict[str, str], namespace: str = "default") -> Path:
    """Write how a client reaches an API server.

    :param user: who it is: ``{"token": ...}``, or ``client-certificate-data`` and ``client-key-data``.
    """
    certificate = base64.b64encode(authority.read_bytes()).decode()
    context = {"cluster": "test", "user": "test", "namespace": namespace}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": certificate}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": context}],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=1))
    return path


def client(certificate: Path, key: Path) -> dict[str, str]:
    """The user of a kubeconfig who shows a certificate."""
    read = {"client-certificate-data": certificate, "client-key-data": key}
    return {name: base64.b64encode(path.read_bytes()).decode() for name, path in read.items()}
