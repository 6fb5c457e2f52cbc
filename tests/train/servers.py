"""Servers on this machine that speak real HTTP: one that does as a test tells it, and moto's S3."""

from __future__ import annotations

import json
import os
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; an answer writes to it."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        answers = self.server.answers
        answers.get(self.path.partition("?")[0], answers.get("*", status(404)))(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's names

    def head(self, status: int, **headers: object) -> None:
        """Send the status and headers, whose names have "_" for "-"."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body: bytes) -> None:
        """Send what a request has asked for; HEAD asks for nothing."""
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A test that fails says enough."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answers: dict[str, Answer]
    seen: list[str]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are what is tested."""


@dataclass
class Web:
    """An HTTP server whose ``answers`` are by path, ``*`` for all others; ``seen`` is what was asked."""

    url: str
    answers: dict[str, Answer]
    seen: list[str] = field(default_factory=list)


def content(body: bytes, **headers: object) -> Answer:
    """Answer with a file."""

    def answer(request: Request) -> None:
        request.head(200, Content_Length=len(body), **headers)
        request.send(body)

    return answer


def status(code: int, body: str = "", **headers: object) -> Answer:
    """Answer with a status, as a redirect and a refusal do."""

    def answer(request: Request) -> None:
        request.head(code, Content_Length=len(body), **headers)
        request.send(body.encode())

    return answer


def forwarded(to: str, refuses: Callable[[Request], bool]) -> Answer:
    """Answer as the server at ``to`` does, and 503 where ``refuses``."""

    def answer(request: Request) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if refuses(request):
            status(503)(request)
            return
        with closing(HTTPConnection(to.removeprefix("http://"))) as connection:
            connection.request(request.command, request.path, body, dict(request.headers))
            answered = connection.getresponse()
            headers = {name: it for name, it in answered.getheaders() if name not in ("Connection", "Date", "Server")}
            request.head(answered.status, **headers)
            request.send(answered.read())

    return answer


def s3_refusal(code: int, name: str) -> Answer:
    """Answer as S3 refuses."""
    return status(code, f"<Error><Code>{name}</Code><Message>No.</Message></Error>", Content_Type="application/xml")


@pytest.fixture
def web() -> Iterator[Web]:
    """A server of the test's own."""
    server = _Server(("127.0.0.1", 0), Request)
    server.answers, server.seen = {}, []
    with _running(server):
        yield Web(f"http://127.0.0.1:{server.server_port}", server.answers, server.seen)


@contextmanager
def serve_with_tls(answers: dict[str, Answer], folder: Path) -> Iterator[str]:
    """Serve with a certificate that has signed itself; give the URL."""
    server = _Server(("127.0.0.1", 0), Request)
    server.answers, server.seen = answers, []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(folder / "server.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with _running(server):
        yield f"https://127.0.0.1:{server.server_port}"


@contextmanager
def _running(server: _Server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def _certificate(file: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1; cryptography comes with moto."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, *form) + certificate.public_bytes(pem))
    return file


SECRET = "wJalrXUtnFEMI-a-secret"


@dataclass
class S3:
    """A store with one empty bucket. ``environment`` gives all rights, and is that of the test as well."""

    endpoint: str
    environment: dict[str, str]
    bucket: str = "a-bucket"

    @property
    def url(self) -> str:
        """The bucket."""
        return f"s3://{self.bucket}"

    def put(self, key: str, content: bytes | str = b"") -> str:
        """Write an object, and return its URI."""
        self.client("s3").put_object(Bucket=self.bucket, Key=key, Body=content)
        return f"{self.url}/{key}"

    def read(self, key: str) -> bytes:
        """Read an object."""
        body: bytes = self.client("s3").get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all objects below ``prefix``."""
        found = self.client("s3").list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return [entry["Key"] for entry in found]

    def user(self, *actions: str, denied: dict[str, str] | None = None) -> dict[str, str]:
        """Make a user, and return the environment that gives these rights. From now on rights count.

        :param actions: such as ``s3:GetObject``.
        :param denied: actions and the resource that they are denied on.
        """
        statements = [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]
        statements += [
            {"Effect": "Deny", "Action": [action], "Resource": resource} for action, resource in (denied or {}).items()
        ]
        iam = self.client("iam")
        iam.create_user(UserName="user")
        policy = {"Version": "2012-10-17", "Statement": statements}
        iam.put_user_policy(UserName="user", PolicyName="rights", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="user")["AccessKey"]
        self._let_rights_count("0")
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def reset(self) -> None:
        """Empty the store; whoever comes has all rights again."""
        self._ask("reset", "")
        self._let_rights_count("inf")
        self.client("s3").create_bucket(Bucket=self.bucket)

    def client(self, service: str) -> Any:
        """A client with all rights while no user has been made."""
        import boto3

        keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=self.endpoint, **keys)

    def _let_rights_count(self, after: str) -> None:
        self._ask("reset-auth", after)

    def _ask(self, what: str, body: str) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/{what}", body.encode(), headers, method="POST")
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """The endpoint of a store that is only in memory."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty store; the environment of the test gives all rights to it."""
    environment = {
        "AWS_ENDPOINT_URL": moto_server,
        "AWS_ACCESS_KEY_ID": "AKIAANYBODY",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        # No other credentials than these: no file's, and none of a machine in a cloud.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = S3(moto_server, environment)
    store.reset()
    return store
