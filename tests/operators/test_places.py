"""Where data, models and results may lie, and how what is secret in a URL stays out of sight.

Aspects: schemes that are read and written, with each launcher; HuggingFace ids; credentials in URLs, in problems, XCom,
asset events and errors; a pod without a claim: its disk, where its results go, what it cannot do; mapped instances.
"""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.contract.uris import has_credential, is_remote, secrets_in, shown
from airflow_provider_finetune.launchers.identity import TaskInstance
from airflow_provider_finetune.launchers.trainjob import TrainerApi, render
from airflow_provider_finetune.operators.delivery import event_of, result_of
from airflow_provider_finetune.operators.place_rules import place_problems
from airflow_provider_finetune.operators.request import output
from tests.operators.test_cluster import MOUNTED, TASK, problems, request_of

PRESIGNED = "https://bucket.example/rows.jsonl?X-Amz-Credential=AKIA1234%2Fs3&X-Amz-Signature=abcdef0123456789&page=1"
LAUNCHERS = ("local", "trainjob", "pod")


def said(**places: Any) -> list[str]:
    return list(map(str, place_problems(places)))


@pytest.mark.parametrize(
    "place",
    [
        "/data/train.jsonl",
        "file:///data/train.jsonl",
        "https://host.example:8443/rows.jsonl.gz",
        PRESIGNED,
        "s3://bucket/rows/",
        "abfss://container@account.dfs.core.windows.net/rows",
        "sftp://trainer@host/rows.csv",
        "s3+custom://bucket/rows",
        "org/data@main?config=en&split=train",
        "hf://org/data@main?config=en&split=train",
        "hf://datasets/org/data",
    ],
)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_data_are_taken_from_everywhere(launcher: str, place: str):
    assert not problems(launcher=launcher, pvc_path="/work/runs", dataset=place, kubernetes_config=MOUNTED)


@pytest.mark.parametrize(
    "place",
    ["/models/base", "org/model@main", "hf://org/model@1a2b3c4", "s3://bucket/base", "oci://registry:5000/base:1"],
)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_base_models_are_taken_from_everywhere_that_holds_directories(launcher: str, place: str):
    given = {"dataset": "/x", "pvc_path": "/work/runs", "kubernetes_config": MOUNTED}
    assert not problems(launcher=launcher, training_base_model=place, **given)


@pytest.mark.parametrize("place", ["file:///work/model", "s3://bucket/model", "gs://bucket/a/model", "weka://c/model"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_results_go_everywhere_that_is_written(launcher: str, place: str):
    given = {"dataset": "/x", "pvc_path": "/work/runs", "kubernetes_config": MOUNTED}
    results = {"output_model": place, "output_metrics": f"{place}/m.json", "output_loss_chart": f"{place}/"}
    assert not problems(launcher=launcher, **results, **given)


@pytest.mark.parametrize(
    ("name", "place", "sentence"),
    [
        ("output_model", "https://host/model", "a web server is only read from. Name a directory, pvc://"),
        ("output_metrics", "http://host/m.json", "a web server is only read from"),
        ("output_model", "hf://org/model", "this version publishes to no repository of HuggingFace"),
        ("output_loss_chart", "oci://registry/chart", "this version pushes to no registry"),
        ("output_model", "s3://bucket", "all that lies there. Name a directory in it: s3://bucket/<path>"),
        ("output_model", "s3://bucket/", "publishing would replace all that lies there"),
        ("output_model", "s3://bucket/model?versionId=1", "a result has neither query nor fragment"),
        ("dataset", "oci://registry/data", "an image holds no rows"),
        ("training_base_model", "https://host/model", "a web server does not list them. Name a HuggingFace id"),
        (
            "dataset",
            "hf://data@main",
            "not the name of a dataset on the HuggingFace hub. Write hf://<organisation>/<name>",
        ),
        ("training_base_model", "hf://gpt2", "it is not the name of a model on the HuggingFace hub"),
        ("training_base_model", "hf://org/model?revision=v1", "and a revision behind it as @<revision>"),
        ("training_base_model", "s3://bucket/base#2", "a model in a store has neither query nor fragment"),
        ("pvc_path", "s3://bucket/runs", "the training works in it, so it must be a directory"),
        ("dataset", "s3 ://bucket/x", "'s3 ' is no scheme. A scheme is a word in lower case"),
        ("dataset", "simplecache::s3://bucket/x", "'simplecache::s3' is no scheme"),
        ("dataset", "PVC://claim/x", "'PVC' is no scheme"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused_with_the_reason_and_the_cure(name: str, place: str, sentence: str):
    (problem,) = said(**{name: place})
    assert sentence in problem


@pytest.mark.parametrize("name", ["dataset", "training_base_model", "output_model", "pvc_path"])
@pytest.mark.parametrize(
    "place",
    [
        "s3://AKIAKEY:topsecret@bucket/x",
        "s3://AKIAKEY:top/secret@bucket/x",
        "https://user:topsecret@host/x",
        "https://topsecret@host/x",
        "sftp://user:topsecret@host/x",
        "file://user:topsecret@host/x",
    ],
)
def test_a_credential_in_a_url_is_refused_and_not_said(name: str, place: str):
    (problem,) = said(**{name: place})
    assert "a credential stands in it" in problem
    assert "name where it lies in secrets=" in problem
    assert "secret@" not in problem
    assert "AKIAKEY" not in problem


def test_the_query_of_a_url_is_in_no_problem():
    assert "abcdef" not in str(problems(training_base_model=PRESIGNED))
    assert "abcdef" not in str(problems(output_model=PRESIGNED))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (PRESIGNED, "https://bucket.example/rows.jsonl"),
        ("s3://bucket/model#1", "s3://bucket/model"),
        ("s3://k:s@bucket/model", "s3://***"),
        ("hf://org/data@main?split=train", "hf://org/data@main?split=train"),
        ("org/data?split=train", "org/data?split=train"),
        ("abfs://container@account/model", "abfs://container@account/model"),
        ("file:///data/a?b#c", "file:///data/a?b#c"),
        ("pvc://claim/a#b", "pvc://claim/a#b"),
    ],
)
def test_a_place_is_shown_without_what_is_secret_and_with_all_else(place: str, expected: str):
    assert shown(place) == expected


@pytest.mark.parametrize("place", ["https://host:8443/x", "https://[::1]:80/x", "s3://bucket/a@b:c", "oci://r/a:1"])
def test_a_port_an_address_and_a_path_are_no_credential(place: str):
    assert not has_credential(place)


def test_what_gives_access_is_found_as_it_stands_and_as_it_is_read():
    assert secrets_in(PRESIGNED) == {"AKIA1234%2Fs3", "AKIA1234/s3", "abcdef0123456789"}
    assert secrets_in("https://a.blob.core.windows.net/c/x?sv=2024-01-01&sig=aaaaaaaa%3D") == {
        "aaaaaaaa%3D",
        "aaaaaaaa=",
    }
    assert secrets_in("https://user:p%40ssword1@host/x") == {"p%40ssword1", "p@ssword1"}
    short = "https://host/x?key=aaaaaaaa&auth=bbbbbbbb&CODE=cccccccc&sas=dddddddd&keyword=eeeeeeee&postcode=ffffffff"
    assert secrets_in(short) == {"aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"}
    assert secrets_in("org/data?config=token&split=train") == set()


@pytest.mark.parametrize(
    ("place", "remote"),
    [("s3://b/x", True), ("hf://org/x", True), ("org/x", False), ("pvc://c/x", False), ("file:///x", False)],
)
def test_a_remote_place_is_known_by_its_scheme(place: str, remote: bool):
    assert is_remote(place) is remote


def test_what_a_task_hands_on_holds_no_credential():
    signed = "s3://bucket/model?X-Amz-Signature=abcdef0123456789"
    outcome = Outcome(
        status="succeeded",
        model_uri=signed,
        adapter_uri="https://user:topsecret@host/adapter",
        loss_chart=signed,
        base_model={"name": PRESIGNED, "revision": "1a2b3c4"},
    )
    result, event = result_of(outcome, "local", None), event_of(outcome)
    assert (result["model_uri"], result["model_path"]) == ("s3://bucket/model", None)
    assert result["loss_chart"] == "s3://bucket/model"
    assert event["base_model"] == {"name": "https://bucket.example/rows.jsonl", "revision": "1a2b3c4"}
    assert not any(word in str([result, event]) for word in ("abcdef", "topsecret", "AKIA"))


def test_an_adapter_beside_the_model_is_handed_on_and_none_is_not():
    both = Outcome(status="succeeded", model_uri="s3://b/m/merged", adapter_uri="s3://b/m/adapter")
    assert result_of(both, "local", None)["adapter_uri"] == event_of(both)["adapter_uri"] == "s3://b/m/adapter"
    one = Outcome(status="succeeded", model_uri="s3://b/m")
    assert "adapter_uri" not in {**result_of(one, "local", None), **event_of(one)}


def test_without_a_claim_a_pod_works_on_the_disk_of_its_node_and_its_results_lie_beside_the_model():
    request = request_of(pvc_path=None, dataset="s3://b/rows", output_model="s3://b/model/")
    spec = request.spec
    assert spec.work_dir == "/var/lib/finetune/dag/run/train"
    assert request.hub_cache == "/var/lib/finetune/.cache/huggingface/hub"
    assert request.claims == {
        "volumes": [{"name": "finetune-scratch", "emptyDir": {}}],
        "volume_mounts": [{"name": "finetune-scratch", "mountPath": "/var/lib/finetune"}],
    }
    assert (spec.dataset, spec.output_model, spec.mounts) == ("s3://b/rows", "s3://b/model/", {})
    assert (spec.output_metrics, spec.output_loss_chart) == ("s3://b/model/metrics.json", "s3://b/model/loss.html")
    render(request, TrainerApi.POD_TEMPLATE_OVERRIDES)


def test_what_was_named_stays_where_it_was_named():
    own = request_of(pvc_path=None, output_model="s3://b/model", output_metrics="gs://b/m.json").spec
    assert (own.output_metrics, own.output_loss_chart) == ("gs://b/m.json", "s3://b/model/loss.html")
    durable = request_of(output_model="s3://b/model").spec
    assert (durable.output_metrics, durable.output_loss_chart) == (None, None)
    assert durable.work_dir == "/mnt/training/runs/dag/run/train"


def test_a_claim_that_is_only_read_is_reached_without_a_root():
    request = request_of(pvc_path=None, output_model="s3://b/model")
    assert request.spec.dataset == "/mnt/training/data/train.jsonl"
    assert [mount["mountPath"] for mount in request.claims["volume_mounts"]] == ["/mnt/training", "/var/lib/finetune"]


def test_a_mapped_instance_publishes_below_its_index_also_in_a_store():
    assert output("s3://b/model/", 3) == "s3://b/model/3"
    task = TaskInstance(**{**vars(TASK), "map_index": 3})
    spec = request_of(task=task, pvc_path=None, output_model="s3://b/model").spec
    assert spec.output_model == "s3://b/model/3"
    assert (spec.output_metrics, spec.output_loss_chart) == ("s3://b/model/3/metrics.json", "s3://b/model/3/loss.html")


def test_several_nodes_need_a_directory_in_which_they_meet():
    from airflow_provider_finetune.contract.parameters import FineTuneParameters

    given = {"pvc_path": None, "output_model": "s3://b/model", "training_resource_num_workers": 2}
    (problem,) = problems(FineTuneParameters, **given)
    assert "training_resource_num_workers=2 meet in a directory that all of them see" in problem
    assert "the claim must be ReadWriteMany" in problem


def test_a_model_that_only_a_template_knows_may_be_remote():
    assert not problems(pvc_path=None, output_model="{{ params.model }}")


@pytest.mark.parametrize("kind", ["adapter", "merged", "both"])
def test_the_kind_of_model_is_in_the_spec(kind: str):
    assert request_of(output_kind=kind).spec.output_kind == kind


def test_another_kind_of_model_is_refused():
    (problem,) = problems(output_kind="gguf")
    assert "output_kind='gguf': it must be one of 'adapter', 'merged', 'both'" in problem
