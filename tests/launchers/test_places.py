"""Where files lie in the pods of a training.

Aspects: what a pvc:// URI says; mounts of ours; claims that kubernetes_config mounts already; read-only; mounts in each
other's way; what outlives the pod; the pod's own disk; the way back from paths to URIs, also in a text.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from airflow_provider_finetune.launchers.places import Places, claim_path, claim_volume
from airflow_provider_finetune.launchers.refusal import CannotRender


def config(*mounts: dict[str, Any], claim: str = "training", **source: Any) -> dict[str, Any]:
    volume = {"name": "work", "persistentVolumeClaim": {"claimName": claim, **source}}
    return {
        "volumes": [volume],
        "volume_mounts": [{"name": "work", "mountPath": "/work", **it} for it in mounts or [{}]],
    }


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pvc://training", ("training", "")),
        ("pvc://training/", ("training", "")),
        ("pvc://training/a/b.jsonl", ("training", "a/b.jsonl")),
        ("pvc://training//a/./b/", ("training", "a/b")),
        ("pvc://my.claim-1/a%20b", ("my.claim-1", "a b")),
    ],
)
def test_a_uri_says_claim_and_path(uri: str, expected: tuple[str, str]):
    assert claim_path(uri) == expected


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("pvc://", "it names no PersistentVolumeClaim"),
        ("pvc:///runs", "it names no PersistentVolumeClaim"),
        ("pvc://Training/runs", "'Training' is no name"),
        ("pvc://-x/runs", "'-x' is no name"),
        ("pvc://a_b/runs", "'a_b' is no name"),
        ("pvc://training/../other", "leaves the claim"),
    ],
)
def test_a_uri_without_a_claim_or_that_leaves_it_is_refused_with_its_form(uri: str, rule: str):
    with pytest.raises(CannotRender, match=re.escape(rule)):
        claim_path(uri)


def test_a_claim_is_mounted_once_at_its_own_place():
    places = Places({}, read=["pvc://training/data/train.jsonl"], written=["pvc://training/runs"])
    assert places.path("pvc://training/data/train.jsonl") == "/mnt/training/data/train.jsonl"
    assert places.path("pvc://training/runs") == "/mnt/training/runs"
    assert places.volumes == [{"name": "finetune-training", "persistentVolumeClaim": {"claimName": "training"}}]
    assert places.volume_mounts == [{"name": "finetune-training", "mountPath": "/mnt/training"}]
    assert places.mounts == {"pvc://training": "/mnt/training"}


def test_a_claim_that_is_only_read_is_mounted_read_only():
    places = Places({}, read=["pvc://data/train.jsonl"], written=["pvc://training/runs"])
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in places.volume_mounts} == {
        "/mnt/training": False,
        "/mnt/data": True,
    }


def test_the_name_of_a_volume_is_a_label_whatever_the_claim_is_called():
    claims = ["training", "my.claim", "my-claim", "x" * 250, "x" * 251, "runner", "shm", "scratch"]
    names = [claim_volume(claim)["name"] for claim in claims]
    assert len({*names, "finetune-runner", "finetune-shm", "finetune-scratch"}) == len(claims) + 3
    assert all(re.fullmatch(r"finetune-[-a-z0-9]{1,53}[a-z0-9]", name) for name in names)


@pytest.mark.parametrize("place", ["/data/x", "org/model", "hf://org/model", "s3://bucket/x"])
def test_what_is_no_uri_of_a_claim_or_file_stays_as_it_is(place: str):
    assert Places({}, read=[place]).path(place) == place


@pytest.mark.parametrize("place", ["file:///data/a%20b", "file://localhost/data/a b"])
def test_a_file_uri_becomes_its_path(place: str):
    assert Places({}, read=[place]).path(place) == "/data/a b"


def test_a_claim_that_kubernetes_config_mounts_is_used_where_it_is():
    places = Places(config(), written=["pvc://training/runs"])
    assert places.path("pvc://training/runs") == "/work/runs"
    assert (places.volumes, places.volume_mounts) == ([], [])
    assert places.mounts == {"pvc://training": "/work"}


def test_a_mounted_part_of_a_claim_serves_what_lies_in_it():
    places = Places(config({"subPath": "team/"}), written=["pvc://training/team/runs"])
    assert places.path("pvc://training/team/runs") == "/work/runs"
    assert places.mounts == {"pvc://training/team": "/work"}


def test_what_lies_beside_the_mounted_part_gets_a_mount_of_the_same_volume():
    places = Places(config({"subPath": "team"}), written=["pvc://training/teams/runs"])
    assert places.path("pvc://training/teams/runs") == "/mnt/training/teams/runs"
    assert places.volumes == []
    assert places.volume_mounts == [{"name": "work", "mountPath": "/mnt/training"}]


def test_the_nearest_mount_serves_a_place():
    both = config({}, {"mountPath": "/team", "subPath": "team"})
    assert Places(both, read=["pvc://training/team/x"]).path("pvc://training/team/x") == "/team/x"


def test_a_directory_that_only_the_pod_knows_is_no_mount_of_the_claim():
    places = Places(config({"subPathExpr": "$(POD_NAME)"}), written=["pvc://training/runs"])
    assert places.path("pvc://training/runs") == "/mnt/training/runs"


@pytest.mark.parametrize(
    "mounted",
    [
        config({"readOnly": True}),
        config(readOnly=True),
        config({"subPath": "other"}, readOnly=True),
    ],
)
def test_a_read_only_claim_is_read_and_never_written(mounted: dict[str, Any]):
    Places(mounted, read=["pvc://training/x"])
    with pytest.raises(CannotRender, match=r"written to.*read-only.*Leave readOnly out"):
        Places(mounted, written=["pvc://training/x"])


def test_a_writable_mount_is_taken_for_what_is_written():
    both = config({"readOnly": True}, {"mountPath": "/out"})
    places = Places(both, written=["pvc://training/runs"])
    assert places.path("pvc://training/runs") == "/out/runs"


@pytest.mark.parametrize("path", ["/mnt/training", "/mnt/training/", "/mnt", "/mnt/training/cache"])
def test_a_mount_in_the_way_of_ours_is_named(path: str):
    other = {"volumes": [{"name": "x", "emptyDir": {}}], "volume_mounts": [{"name": "x", "mountPath": path}]}
    with pytest.raises(CannotRender, match=r"goes to /mnt/training, and volume 'x' is mounted at .*elsewhere"):
        Places(other, written=["pvc://training/runs"])


@pytest.mark.parametrize(
    ("volume", "lasts"),
    [
        ({"persistentVolumeClaim": {"claimName": "c"}}, True),
        ({"nfs": {"server": "s", "path": "/"}}, True),
        ({"hostPath": {"path": "/x"}}, True),
        ({"emptyDir": {}}, False),
        ({}, False),
        ({"ephemeral": {}}, False),
        ({"secret": {"secretName": "s"}}, False),
    ],
)
def test_what_outlives_the_pod_is_known_by_the_kind_of_volume(volume: dict[str, Any], lasts: bool):
    given = {"volumes": [{"name": "v", **volume}], "volume_mounts": [{"name": "v", "mountPath": "/work"}]}
    assert Places(given).lasts("/work/runs") is lasts
    assert not Places(given).lasts("/works/runs")


def test_a_volume_of_the_runtime_is_believed_and_the_innermost_mount_counts():
    given = {
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "volume_mounts": [{"name": "runtime", "mountPath": "/work"}, {"name": "scratch", "mountPath": "/work/tmp"}],
    }
    assert Places(given).lasts("/work/runs")
    assert not Places(given).lasts("/work/tmp/runs")


def test_the_disk_of_the_node_is_mounted_where_nothing_outlives_the_pod():
    places = Places({}, read=["pvc://data/x"], scratch=True)
    assert places.volumes[-1] == {"name": "finetune-scratch", "emptyDir": {}}
    assert places.volume_mounts[-1] == {"name": "finetune-scratch", "mountPath": "/var/lib/finetune"}
    assert not places.lasts("/var/lib/finetune/runs")
    assert places.mounts == {"pvc://data": "/mnt/data"}


def test_a_volume_that_kubernetes_config_mounts_there_is_taken_instead():
    given = config({"mountPath": "/var/lib/finetune/"})
    places = Places(given, scratch=True)
    assert (places.volumes, places.volume_mounts) == ([], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'/mnt/training/data/x.jsonl' is not there", "'pvc://training/data/x.jsonl' is not there"),
        ("Mount /mnt/training.", "Mount pvc://training."),
        ("file:///mnt/training/m, /work/m", "pvc://training/m, pvc://other/team/m"),
        ("/mnt/training-2/x", "/mnt/training-2/x"),
        ("/mnt/training.old/x", "/mnt/training.old/x"),
        ("s3://bucket/mnt/training/x", "s3://bucket/mnt/training/x"),
        ("/backup/mnt/training/x", "/backup/mnt/training/x"),
    ],
)
def test_a_text_of_the_pod_names_the_claim_and_no_mount(text: str, expected: str):
    places = Places(config({"subPath": "team"}, claim="other"), written=["pvc://training/runs"])
    assert places.named(text) == expected
