"""A training whose data come from S3 and whose results go there, in a pod without a claim.

Tested: rows and keys reach the pod, which works on its node's disk; model, metrics and chart lie in the bucket, where
XCom says; a bucket that is not there ends the task before any training; no key is in the task log or in the job.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.node import GATEWAY

KEY = "a-key-that-only-the-secret-holds"

Run = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def store(train_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 that pods reach: the bridge that they are on is this machine's too."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [train_python, "-u", "-m", "moto.server", "--host", GATEWAY, "--port", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _address(server, log)
    finally:
        server.terminate()
        server.wait(10)


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        for word in log.read_text().split():
            if word.startswith(f"http://{GATEWAY}:"):
                return word
        time.sleep(0.2)
    pytest.fail(f"moto does not serve: {log.read_text()}")


def request(url: str, method: str = "GET", data: bytes | None = None) -> bytes:
    # Without a type urllib calls the body a form, which moto takes away as one; without a key it is nobody's request.
    key = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Content-Type": "application/octet-stream", "Authorization": key}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=10) as answer:
        content: bytes = answer.read()
        return content


@pytest.fixture
def bucket(store: str) -> str:
    """A bucket with 32 rows in two files."""
    url = f"{store}/bucket-{time.monotonic_ns()}"
    request(url, "PUT")
    for part in (0, 1):
        rows = [
            {"messages": [{"role": "user", "content": f"number {n}?"}, {"role": "assistant", "content": str(n)}]}
            for n in range(part * 16, part * 16 + 16)
        ]
        request(f"{url}/rows/{part}.jsonl", "PUT", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return url


def names(bucket: str) -> set[str]:
    listing = ElementTree.fromstring(request(f"{bucket}?list-type=2"))
    return {str(key.text) for key in listing.iterfind("{*}Contents/{*}Key")}


@pytest.fixture
def remote(cluster: Cluster, namespace: str, claim: Path, cluster_task: dict[str, Any], store: str) -> dict[str, Any]:
    """Arguments of a task with keys, and without a directory that outlives its pod."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": namespace}}
    cluster.apply({**secret, "stringData": {"id": "testing", "key": KEY}})
    return {
        **cluster_task,
        "pvc_path": None,
        "secrets": {"AWS_ACCESS_KEY_ID": "s3/id", "AWS_SECRET_ACCESS_KEY": "s3/key"},
        "training_envs": {"AWS_ENDPOINT_URL": store, "AWS_DEFAULT_REGION": "us-east-1"},
    }


@pytest.fixture
def constants(remote: dict[str, Any]) -> dict[str, Any]:
    return {"CLUSTER": remote}


def test_rows_come_from_s3_and_the_results_go_there(run: Run, xcom: Callable[..., Any], bucket: str) -> None:
    name = bucket.rpartition("/")[2]
    places = {"dataset": f"s3://{name}/rows", "output_model": f"s3://{name}/model"}
    result = run(f'LoRAOperator(task_id="train", on_finish="delete", **CLUSTER | {places!r})')
    assert result.state == "success", result.log[-6000:]
    said = xcom(result.tasks["train"])
    assert (said["model_uri"], said["model_path"]) == (f"s3://{name}/model", None)
    assert said["loss_chart"] == f"s3://{name}/model/loss.html"
    assert said["metrics"]["loss"] > 0
    files = {"adapter_config.json", "adapter_model.safetensors", "metrics.json", "loss.html"}
    assert {f"model/{file}" for file in files} <= names(bucket)
    assert json.loads(request(f"{bucket}/model/adapter_config.json"))["r"] == 16
    assert b"<svg" in request(f"{bucket}/model/loss.html")
    assert KEY not in result.log


def test_a_bucket_that_is_not_there_is_named_before_any_training_and_not_tried_again(
    run: Run, cluster: Cluster, namespace: str, bucket: str
) -> None:
    name = bucket.rpartition("/")[2]
    places = {"dataset": f"s3://{name}/rows", "output_model": "s3://no-such-bucket/model"}
    result = run(f'LoRAOperator(task_id="train", retries=1, **CLUSTER | {places!r})')
    assert (result.state, result.tasks["train"].try_number) == ("failed", 1), result.log[-6000:]
    assert "no-such-bucket" in result.log.split("Training failed")[1]
    assert "on its volume" not in result.log
    assert "step 1/" not in result.log
    (job,) = json.loads(cluster.kubectl("get", "trainjobs", f"--namespace={namespace}", "--output=json"))["items"]
    assert KEY not in json.dumps(job)
    assert "finetune-scratch" in json.dumps(job)
