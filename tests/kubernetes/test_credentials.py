"""What a connection of the cncf.kubernetes provider means here.

* kubeconfig as a path, as text and as JSON, a token file, a program that gives a token, the pod's own credentials
* the namespace that it gives
* an unusable or unsafe connection is an error that names it and the cure
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.cluster import hook as hook_module
from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.cluster.refusals import Refused
from airflow_provider_finetune.exceptions import AirflowFailException
from tests.kubernetes.conftest import TOKEN, ApiServer

Write = Callable[..., Path]
Define = Callable[..., None]


def token_sent(api: ApiServer, conn_id: str = "cluster") -> str:
    """Make one request and return the credentials that came with it."""
    api.answer("get /apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs", {"items": []})

    async def ask() -> None:
        async with TrainingHook(conn_id, "ml", pauses=()) as hook:
            await hook.list_jobs({})

    asyncio.run(ask())
    return api.requests[-1].headers["Authorization"]


def namespace_of(namespace: str | None = None) -> str:
    async def enter() -> str:
        async with TrainingHook("cluster", namespace) as hook:
            return hook.namespace

    return asyncio.run(enter())


def error_of(conn_id: str = "cluster") -> Refused:
    async def ask() -> None:
        async with TrainingHook(conn_id, "ml", pauses=()) as hook:
            await hook.list_jobs({})

    with pytest.raises(Refused) as caught:
        asyncio.run(ask())
    return caught.value


def test_a_kubeconfig_may_be_a_path_a_text_or_json(api: ApiServer, kubeconfig: Write, connection: Define) -> None:
    path = kubeconfig()
    text = path.read_text(encoding="utf-8")
    for extra in ({"kube_config_path": str(path)}, {"kube_config": text}, {"kube_config": json.loads(text)}):
        connection(**extra)
        assert token_sent(api) == f"Bearer {TOKEN}"


def test_empty_fields_of_the_connection_form_are_no_settings(
    api: ApiServer, kubeconfig: Write, connection: Define
) -> None:
    connection(
        kube_config=kubeconfig().read_text(encoding="utf-8"), kube_config_path="", in_cluster=False, namespace=""
    )
    assert token_sent(api) == f"Bearer {TOKEN}"
    assert namespace_of() == "default"


def test_settings_under_their_long_names_are_understood(api: ApiServer, kubeconfig: Write, connection: Define) -> None:
    connection(extra__kubernetes__kube_config_path=str(kubeconfig()), extra__kubernetes__namespace="long")
    assert token_sent(api) == f"Bearer {TOKEN}"
    assert namespace_of() == "long"


def test_a_token_may_lie_in_a_file(api: ApiServer, kubeconfig: Write, connection: Define, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file", encoding="utf-8")
    connection(kube_config_path=str(kubeconfig(user={"tokenFile": str(tmp_path / "token")})))
    assert token_sent(api) == "Bearer from-a-file"


def program(source: str) -> dict[str, Any]:
    version = "client.authentication.k8s.io/v1"
    return {
        "exec": {"apiVersion": version, "command": sys.executable, "args": ["-c", source], "interactiveMode": "Never"}
    }


def test_a_token_may_come_from_a_program(api: ApiServer, kubeconfig: Write, connection: Define) -> None:
    document = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-a-program"},
    }
    connection(kube_config_path=str(kubeconfig(user=program(f"print({json.dumps(json.dumps(document))})"))))
    assert token_sent(api) == "Bearer from-a-program"


def test_a_program_that_fails_is_worth_a_retry(kubeconfig: Write, connection: Define) -> None:
    user = program("import sys; sys.exit('the login has expired')")
    connection(kube_config_path=str(kubeconfig(user=user, server="https://127.0.0.1:1")))
    error = error_of()
    assert error.cause == "credentials_unavailable"
    assert not isinstance(error, AirflowFailException)


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a kubelet gives each container, in another place than where it is looked for in a real one."""
    from kubernetes_asyncio.config import incluster_config

    for name, content in {"token": "of-the-pod", "ca.crt": CA, "namespace": "own\n"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(hook_module, "POD_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")


@pytest.mark.usefixtures("in_a_pod")
@pytest.mark.parametrize("extra", [{}, {"in_cluster": True}, {"kube_config": "", "in_cluster": False}])
def test_a_connection_without_settings_takes_the_pods_own_credentials(connection: Define, extra: Any) -> None:
    connection(**extra)
    error = error_of()
    assert "The API server https://127.0.0.1:1 of connection 'cluster' does not answer" in str(error)
    assert namespace_of() == "own"
    assert namespace_of("given") == "given"


@pytest.mark.usefixtures("in_a_pod")
def test_settings_of_the_connection_go_before_the_pods_own(
    api: ApiServer, kubeconfig: Write, connection: Define
) -> None:
    connection(kube_config_path=str(kubeconfig()), namespace="team")
    assert token_sent(api) == f"Bearer {TOKEN}"
    assert namespace_of() == "team"


def test_a_connection_without_settings_takes_the_kubeconfig_at_its_usual_place(
    api: ApiServer, kubeconfig: Write, connection: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes_asyncio.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig()))
    connection()
    assert token_sent(api) == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    "extra", [{"kube_config_path": "/nowhere/kubeconfig"}, {"kube_config": "not: [a kubeconfig"}, {"kube_config": "{}"}]
)
def test_an_unusable_connection_is_named_with_the_cure(connection: Define, extra: Any) -> None:
    connection(**extra)
    error = error_of()
    assert error.cause == "connection_unusable"
    assert "Connection 'cluster' gives no usable credentials" in str(error)
    assert "kube_config_path" in error.failure.cure
    assert isinstance(error, AirflowFailException)


def test_a_broken_kubeconfig_is_not_quoted(connection: Define) -> None:
    connection(kube_config=f"users: [{{user: {{token: {TOKEN}")
    error = error_of()
    assert TOKEN not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_two_sources_of_credentials_are_refused(kubeconfig: Write, connection: Define) -> None:
    connection(kube_config_path=str(kubeconfig()), in_cluster=True)
    assert "mutually exclusive" in str(error_of())


@pytest.mark.parametrize("where", ["kubeconfig", "connection"])
def test_a_connection_that_does_not_verify_the_server_is_refused(
    api: ApiServer, kubeconfig: Write, connection: Define, where: str
) -> None:
    path = kubeconfig(**({"insecure-skip-tls-verify": True} if where == "kubeconfig" else {}))
    connection(kube_config_path=str(path), **({"disable_verify_ssl": True} if where == "connection" else {}))
    error = error_of()
    assert error.cause == "unverified_tls"
    assert "Connection 'cluster' turns off the verification" in str(error)
    assert "certificate-authority-data" in error.failure.cure
    assert api.asked == []


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        ("http://cluster.example:8080", "unencrypted"),
        ("http://127.0.0.1.example:8080", "unencrypted"),
        ("http://127.0.0.1:1", "unreachable"),
        ("http://localhost:1", "unreachable"),
        ("http://[::1]:1", "unreachable"),
    ],
)
def test_a_token_travels_unencrypted_on_this_machine_only(
    kubeconfig: Write, connection: Define, server: str, cause: str
) -> None:
    connection(kube_config_path=str(kubeconfig(server=server)))
    error = error_of()
    assert error.cause == cause
    assert server in str(error)


# Of nobody: made for this test, its key thrown away.
CA = """-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUI96gRf6f/lazRVfgWUVpNzh9gXowCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjMyMzEwMTRaGA8yMTI2MTAzMDIzMTAx
NFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABPSo
id9CvShYr4I49WMTOZVp9wGkT8EYxLUT7pHYK7OjEYZysNNjTBDiHYgMWLs53EFK
A9r/i43grLvTk2yNJySjUzBRMB0GA1UdDgQWBBTLjik/+CzQMSbSLWfYQkvFV8qd
9zAfBgNVHSMEGDAWgBTLjik/+CzQMSbSLWfYQkvFV8qd9zAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQDuTmUjPsctRvPJ663+Qit7h3RNaniX0hZY
xCFfLGHMQwIgWUUojQBSxFVWi4w63uXK+a0HgD6dnNeCKCA/Gb6+pGo=
-----END CERTIFICATE-----
"""
