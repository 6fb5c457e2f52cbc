"""A base model in an OCI image, fetched by the real skopeo from a real registry.

What is tested: which files of which layers arrive, images that hold no model or one that would be unpacked elsewhere,
and what a registry can refuse. Without Debian's packages ``skopeo`` and ``docker-registry`` most of it is skipped.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner import model
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.model import BaseModel

needs_registry = pytest.mark.skipif(
    not (shutil.which("skopeo") and shutil.which("docker-registry")),
    reason="the packages skopeo and docker-registry are not installed",
)

Locate = Callable[[str], BaseModel]
Layer = dict[str, "bytes | tarfile.TarInfo"]
Push = Callable[..., str]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def locate(scratch: Path) -> Locate:
    """Find a model."""
    return lambda name: model.locate(name, scratch=scratch, say=lambda line: None)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a registry without TLS."""
    place, port = tmp_path_factory.mktemp("registry"), free_port()
    configuration = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    # JSON is YAML.
    (place / "registry.yml").write_text(json.dumps(configuration))
    with (place / "log").open("w") as log:
        command = ["docker-registry", "serve", str(place / "registry.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.fixture
def without_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let skopeo speak plain HTTP to one registry."""

    def allow(address: str) -> None:
        configuration = tmp_path / "home/.config/containers/registries.conf"
        configuration.parent.mkdir(parents=True)
        configuration.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        monkeypatch.setenv("HOME", str(tmp_path / "home"))

    return allow


@pytest.fixture
def push(address: str, tmp_path: Path, without_tls: Callable[[str], None]) -> Push:
    """Put an image of these layers into the registry and return its URI."""
    without_tls(address)

    def push(*layers: Layer) -> str:
        layout = tmp_path / "layout"
        write_image(layout, [layer_of(entries) for entries in layers])
        name = f"{address}/org/model:{hashlib.sha256((layout / 'index.json').read_bytes()).hexdigest()[:12]}"
        subprocess.run(["skopeo", "copy", "--quiet", f"oci:{layout}", f"docker://{name}"], check=True)
        return f"oci://{name}"

    return push


def layer_of(entries: Layer) -> bytes:
    """Write a tar archive."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, entry in entries.items():
            member = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(name)
            content = b"" if isinstance(entry, tarfile.TarInfo) else entry
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def write_image(layout: Path, layers: list[bytes]) -> None:
    """Write an OCI layout with one image, whose layers are compressed."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(gzip.compress(layer), "layer.v1.tar+gzip") for layer in layers],
    }
    index = {"schemaVersion": 2, "manifests": [put(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def files_of(directory: Path, below: str) -> Layer:
    """The files of a model, as entries of a layer."""
    return {f"{below}/{path.name}": path.read_bytes() for path in directory.iterdir()}


def link(name: str, target: str) -> Layer:
    """A layer with one symbolic link."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return {name: member}


def refused(locate: Locate, uri: str, cause: str, whose: str = "user") -> str:
    """Check that it is refused for ``cause``, and return message and cure."""
    with pytest.raises(RunFailed) as caught:
        locate(uri)
    failure = caught.value.failure
    assert (failure.failure_class, failure.cause) == (whose, cause), failure
    return f"{failure.message} {failure.cure}"


@needs_registry
def test_a_model_comes_out_of_the_layers_of_its_image_and_nothing_else_does(
    push: Push, locate: Locate, scratch: Path, tiny_model: Path
) -> None:
    earlier: Layer = {"models/old/notes.txt": b"", "models/later_removed.json": b"{}", "etc/passwd": b"root"}
    later: Layer = {"models/.wh.later_removed.json": b"", "models/old/.wh..wh..opq": b"", "models/old/new.txt": b""}
    uri = push(earlier, {**later, **files_of(tiny_model, "models")})
    base = locate(uri)
    path = scratch / "base-model/models"
    size = (tiny_model / "model.safetensors").stat().st_size
    assert base == BaseModel(uri, str(path), uri, None, size, fetched=True)
    model.load_tokenizer(base)
    assert {entry.name for entry in path.iterdir()} == {entry.name for entry in tiny_model.iterdir()} | {"old"}
    assert [entry.name for entry in (path / "old").iterdir()] == ["new.txt"]
    assert [entry.name for entry in scratch.iterdir()] == ["base-model"]
    assert [entry.name for entry in (scratch / "base-model").iterdir()] == ["models"]
    # And once more, where an earlier try has left something.
    assert locate(uri) == base


@needs_registry
def test_a_model_may_lie_in_a_directory_of_its_name(push: Push, locate: Locate, tiny_model: Path) -> None:
    assert locate(push(files_of(tiny_model, "./models/tiny"))).path.endswith("/models/tiny")


@needs_registry
def test_an_image_that_holds_no_model_or_several_is_refused(push: Push, locate: Locate, tiny_model: Path) -> None:
    assert "no config.json below /models" in refused(locate, push({"etc/config.json": b"{}"}), "model_incomplete")
    two = push({**files_of(tiny_model, "models/a"), **files_of(tiny_model, "models/b")})
    assert "several models: /models/a, /models/b" in refused(locate, two, "model_incomplete")
    assert "has no weights" in refused(locate, push({"models/config.json": b"{}"}), "model_incomplete")


@needs_registry
@pytest.mark.parametrize(
    "layer",
    [link("models/config.json", "/etc/passwd"), link("models/x", "../../.."), {"models/../../.wh.victim": b""}],
    ids=["absolute link", "link outwards", "removal outwards"],
)
def test_an_image_that_reaches_out_of_its_directory_is_refused(
    push: Push, locate: Locate, scratch: Path, layer: Layer
) -> None:
    (scratch).mkdir()
    (scratch / "victim").touch()
    assert "cannot be unpacked" in refused(locate, push(layer), "model_unreadable")
    assert (scratch / "victim").exists()


@needs_registry
def test_what_is_not_in_the_registry_is_named(push: Push, locate: Locate) -> None:
    there = push({"models/x": b""})
    assert "manifest unknown" in refused(locate, f"{there}x", "model_missing")
    assert "Invalid source name" in refused(locate, there.replace("org/model", "ORG"), "model_missing")


@needs_registry
@pytest.mark.parametrize(
    ("status", "cause", "whose"),
    [
        (401, "model_unreadable", "user"),
        (403, "model_unreadable", "user"),
        (500, "registry_unreachable", "infrastructure"),
    ],
)
def test_a_registry_that_does_not_give_is_named(
    locate: Locate, without_tls: Callable[[str], None], status: int, cause: str, whose: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="registry"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        without_tls(f"127.0.0.1:{server.server_port}")
        assert str(server.server_port) in refused(
            locate, f"oci://127.0.0.1:{server.server_port}/org/model:1", cause, whose
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@needs_registry
def test_a_registry_that_cannot_be_reached_may_be_reached_by_a_retry(locate: Locate) -> None:
    refused(locate, "oci://127.0.0.1:1/org/model:1", "registry_unreachable", "infrastructure")


def test_without_skopeo_its_name_is_told(locate: Locate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "Install the package skopeo" in refused(locate, "oci://registry/org/model:1", "skopeo_missing")


def test_credentials_in_the_address_are_refused_and_not_repeated(locate: Locate) -> None:
    assert "secret" not in refused(locate, "oci://user:secret@registry/org/model:1", "model_name_wrong")
