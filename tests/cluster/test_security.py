"""What a training may see, show and do.

* tokens that run out and are renewed while a task waits; certificates that are expired or of somebody else
* secrets planted everywhere a task may have one, then searched for in all that anybody can read
* pods with the restricted settings of ``docs/security.md``: accepted where they are enforced, and trained in
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from airflow_provider_finetune.launchers import pod
from tests.cluster import rights
from tests.cluster.bed import certificates
from tests.cluster.bed.certificates import Authority, kubeconfig
from tests.cluster.bed.cluster import Cluster
from tests.cluster.test_refusals import Train, altered, train
from tests.launchers.conftest import MINIMAL

__all__ = ["altered", "train"]

Run = Callable[..., SimpleNamespace]

SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub0123456789",
    "AWS_SECRET_ACCESS_KEY": "PlantedKeyOfTheStore0123456789abcdefghij",
}
SIGNATURE = "PlantedSignatureOfAUrl0123456789"


def documented(name: str) -> Any:
    """A value of a code block of ``docs/security.md``, as people copy it from there."""
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, found)
    return found[name]


# Credentials of the API server.


def token(cluster: Cluster, namespace: str, bound_to: str) -> str:
    """A token that ends with a secret of this name."""
    cluster.kubectl("create", "secret", "generic", bound_to, f"--namespace={namespace}")
    bound = ("--bound-object-kind=Secret", f"--bound-object-name={bound_to}")
    return cluster.kubectl("create", "token", rights.ACCOUNT, f"--namespace={namespace}", *bound).strip()


@pytest.mark.parametrize("launcher", ["trainjob", "pod"])
def test_a_token_that_is_rotated_while_a_task_waits_costs_nothing(
    run: Run, cluster: Cluster, namespace: str, claim: Path, account: Path, connect: Any, tmp_path: Path, launcher: str
) -> None:
    cluster.apply(*rights.shipped(namespace, file="rbac-pod.yaml"))
    first, second = (token(cluster, namespace, f"{launcher}-{name}") for name in ("first", "second"))
    file = tmp_path / "token"
    file.write_text(first)
    config = yaml.safe_load(account.read_text())
    config["users"][0]["user"] = {"tokenFile": str(file)}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    connect(tmp_path / "kubeconfig", "rotated")

    def rotate() -> None:
        file.write_text(second)
        # From then on the first is refused, once the server has forgotten that it knew it, which takes 10 s.
        cluster.kubectl("delete", "secret", f"{launcher}-first", f"--namespace={namespace}")

    timer = threading.Timer(15, rotate)
    timer.start()
    name = {"trainjob": "CLUSTER", "pod": "POD"}[launcher]
    more = {"task_id": "train", "kubernetes_conn_id": "rotated", "training_num_epochs": 40, "progress_interval": 2}
    result = run(f"LoRAOperator(**{name} | {more!r})")
    timer.join()
    assert result.state == "success", result.log[-6000:]
    assert "is left alone" not in result.log
    for one in (first, second):
        assert one not in result.log


def test_a_token_that_has_run_out_is_told_and_not_tried_again(
    train: Train, altered: Callable[..., None], account: Path, cluster: Cluster
) -> None:
    good = yaml.safe_load(account.read_text())["users"][0]["user"]["token"]
    claims = jwt.decode(good, options={"verify_signature": False})
    past = int(datetime.datetime.now(datetime.timezone.utc).timestamp()) - 7200
    claims |= {"iat": past, "nbf": past, "exp": past + 3600}
    key = load_pem_private_key((cluster.folder / "certificates" / "service-accounts.key").read_bytes(), None)
    expired = jwt.encode(claims, key, algorithm="ES256", headers={"kid": jwt.get_unverified_header(good)["kid"]})  # type: ignore[arg-type]  # an EC key
    altered(token=expired)
    error = train(kubernetes_conn_id="altered")
    assert (error.cause, error.tries) == ("unauthorized", 1)
    assert "Renew the token" in error.cure
    assert expired not in error.log


def test_a_server_of_another_authority_is_not_spoken_to(
    train: Train, altered: Callable[..., None], tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    altered(**{"certificate-authority-data": base64.b64encode(stranger.path.read_bytes()).decode()})
    error = train(kubernetes_conn_id="altered")
    assert (error.cause, error.tries) == ("untrusted_certificate", 1)
    assert "certificate-authority-data" in error.cure


@pytest.fixture
def expired_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """A server whose certificate has run out: its address, its authority, and what it was asked."""
    authority = Authority(tmp_path / "authority")
    monkeypatch.setattr(certificates, "LIFETIME", datetime.timedelta(minutes=-1))
    certificate, key = authority.issue("server")
    monkeypatch.undo()
    until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    assert until < datetime.datetime.now(datetime.timezone.utc)
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization", ""))
            self.send_error(404)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client breaks the handshake off
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", authority.path, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_whose_certificate_has_run_out_gets_no_token(
    train: Train, connect: Callable[..., None], tmp_path: Path, expired_server: tuple[str, Path, list[str]]
) -> None:
    address, authority, asked = expired_server
    connect(kubeconfig(tmp_path / "kubeconfig", address, authority, {"token": SECRETS["HF_TOKEN"]}), "expired")
    error = train(kubernetes_conn_id="expired")
    assert (error.cause, error.tries) == ("untrusted_certificate", 1)
    assert "expired" in error.message
    assert asked == []


# Secrets.


@pytest.fixture(scope="module")
def planted(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Credentials in a secret of the namespace: what a task names them by."""
    literals = [f"--from-literal={name}={value}" for name, value in SECRETS.items()]
    cluster.kubectl("create", "secret", "generic", "planted", f"--namespace={namespace}", *literals)
    return {name: f"planted/{name}" for name in SECRETS}


@pytest.mark.parametrize("launcher", ["trainjob", "pod"])
def test_no_secret_is_where_anybody_can_read_it(
    run: Run,
    cluster: Cluster,
    namespace: str,
    claim: Path,
    planted: dict[str, str],
    account: Path,
    pod_account: Path,
    launcher: str,
) -> None:
    name, used = {"trainjob": ("CLUSTER", account), "pod": ("POD", pod_account)}[launcher]
    # A data set behind a signed URL that nothing answers: the reason must not show it. And one that trains.
    signed = f"https://127.0.0.1:9/train.jsonl?X-Amz-Signature={SIGNATURE}"
    more = {"secrets": planted, "on_finish": "keep", "retries": 0}
    result = run(f"""
        MORE = {name} | {more!r}
        good = LoRAOperator(task_id="good", **MORE)
        bad = LoRAOperator(task_id="bad", **MORE | {{"dataset": {signed!r}}})
    """)
    states = {name: ti.state for name, ti in result.tasks.items()}
    assert states == {"good": "success", "bad": "failed"}, result.log[-6000:]
    kinds = "trainjobs,jobsets,jobs,pods,configmaps,events,clustertrainingruntimes"
    shown = cluster.kubectl("get", kinds, f"--namespace={namespace}", "--output=yaml", "--show-managed-fields")
    token_of_connection = yaml.safe_load(used.read_text())["users"][0]["user"]["token"]
    places = {
        "objects": shown,
        "logs of pods": logs_of_pods(cluster, namespace),
        "task log": result.log,
        "files of the runs": files_below(claim / "runs"),
        "Airflow's database": stored_by_airflow(),
    }
    assert "planted" in places["objects"], "the search looks at the right objects"
    assert "model_uri" in places["Airflow's database"]
    for secret in (*SECRETS.values(), token_of_connection):
        found = [place for place, text in places.items() if secret in text]
        assert not found, f"{secret[:12]}… is in {found}"
    assert SIGNATURE not in places["task log"]
    assert SIGNATURE not in places["files of the runs"]


def logs_of_pods(cluster: Cluster, namespace: str) -> str:
    names = cluster.kubectl("get", "pods", f"--namespace={namespace}", "--output=name").split()
    return "".join(cluster.kubectl("logs", name, f"--namespace={namespace}", "--all-containers") for name in names)


def files_below(folder: Path) -> str:
    texts = [
        file for file in folder.rglob("*") if file.is_file() and file.suffix in (".json", ".jsonl", ".log", ".html")
    ]
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in texts)


def stored_by_airflow() -> str:
    """XCom, rendered templates, serialized DAGs and triggers: all that the UI can show."""
    from airflow.utils.session import create_session
    from sqlalchemy import text

    tables = ("xcom", "rendered_task_instance_fields", "serialized_dag", "trigger", "task_instance", "log")
    with create_session() as session:
        return "".join(str(row) for table in tables for row in session.execute(text(f"SELECT * FROM {table}")))


# Restricted pods.


@pytest.fixture(scope="module")
def restricted_namespace(cluster: Cluster, namespace: str) -> Iterator[str]:
    """A namespace that takes no pods but those that keep to the standard "restricted"."""
    name = f"{namespace}-restricted"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_the_documented_settings_keep_to_the_restricted_standard(
    cluster: Cluster, restricted_namespace: str, refused: Callable[..., str]
) -> None:
    def asked(**config: Any) -> str:
        own: dict[str, Any] = {"runtime": "", "runtime_kind": "", "image": "registry.example/training-hub:1"}
        request = replace(MINIMAL, namespace=restricted_namespace, kubernetes_config=config, **own)
        return json.dumps(pod.render(request))

    create = ("create", "--dry-run=server", "--filename=-")
    assert "violates PodSecurity" in refused(*create, stdin=asked())
    assert "created" in cluster.kubectl(*create, stdin=asked(**documented("RESTRICTED")))


@pytest.fixture
def refused(cluster: Cluster) -> Callable[..., str]:
    """What kubectl says of what the server refuses."""

    def ask(*arguments: str, stdin: str) -> str:
        with pytest.raises(subprocess.CalledProcessError) as error:
            cluster.kubectl(*arguments, stdin=stdin)
        return str(error.value.stderr)

    return ask


@pytest.mark.parametrize("launcher", ["trainjob", "pod"])
def test_a_restricted_pod_trains(
    run: Run, xcom: Callable[..., Any], claim: Path, account: Path, pod_account: Path, launcher: str
) -> None:
    name = {"trainjob": "CLUSTER", "pod": "POD"}[launcher]
    # The folder of the other tests is root's, and fsGroup changes nothing in a folder of the node.
    more = {"task_id": "train", "kubernetes_config": documented("RESTRICTED"), "pvc_path": f"pvc://work/{launcher}"}
    result = run(f"LoRAOperator(**{name} | {more!r})")
    assert result.state == "success", result.log[-6000:]
    model = claim / xcom(result.tasks["train"])["model_uri"].removeprefix("pvc://work/")
    assert (model / "adapter_model.safetensors").stat().st_uid == 1001
