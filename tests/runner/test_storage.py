"""Results are put in place whole, and nothing of the user's is ever put away for them.

* which path a URI names, and which URIs are refused; which URI a path has for somebody else; what of it people see
* a model replaces a model, and nothing else: no other files, no root, no input of the training
* what was there stays until the new thing is whole, also when something goes wrong or two publish at once
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from airflow_provider_finetune.runner import storage
from airflow_provider_finetune.runner.failures import UserError


def save_model(directory: Path, weights: str = "old") -> Path:
    """Write what every published model has."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_text(weights)
    return directory


def weights_of(directory: Path) -> str:
    """Return the weights of :func:`save_model`."""
    return (directory / "adapter_model.safetensors").read_text()


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/data/rows.jsonl", "/data/rows.jsonl"),
        ("file:///data/rows.jsonl", "/data/rows.jsonl"),
        ("FILE:///data/rows.jsonl", "/data/rows.jsonl"),
        ("file://localhost/data/rows.jsonl", "/data/rows.jsonl"),
        ("file:///data/two%20words", "/data/two words"),
        ("file:///data/run#1/what?", "/data/run#1/what?"),
    ],
)
def test_a_path_or_a_file_uri_names_a_local_path(uri: str, path: str) -> None:
    assert storage.local_path(uri, "dataset") == Path(path)


def test_a_file_uri_with_two_slashes_is_refused_and_not_read_from_the_root() -> None:
    with pytest.raises(UserError) as raised:
        storage.local_path("file://data/rows.jsonl", "dataset")
    assert "file:///" in raised.value.failure.cure
    assert "'data'" in raised.value.failure.message


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://host:8443/a/rows.jsonl?X-Amz-Signature=s#f", "https://host:8443/a/rows.jsonl"),
        ("https://user:secret@host/rows.jsonl", "https://***"),
        ("https://token@host/rows.jsonl", "https://***"),
        ("https://user:a/secret@host/rows.jsonl", "https://***"),
        ("https://user:a?secret@host/rows.jsonl", "https://***"),
        ("s3://key:secret@bucket/rows", "s3://***"),
        ("s3://bucket/rows@2/a.jsonl", "s3://bucket/rows@2/a.jsonl"),
        ("s3://arn:aws:s3:eu-west-1:1:accesspoint/a/rows", "s3://arn:aws:s3:eu-west-1:1:accesspoint/a/rows"),
        ("abfs://container@account.dfs.core.windows.net/rows", "abfs://container@account.dfs.core.windows.net/rows"),
        ("http://[::1]:80/rows", "http://[::1]:80/rows"),
        ("/data/what?/run#1", "/data/what?/run#1"),
        ("file:///data/what?/run#1", "file:///data/what?/run#1"),
        ("hf://org/name@v1?split=train", "hf://org/name@v1?split=train"),
    ],
)
def test_what_people_see_of_a_uri_gives_nobody_a_right(uri: str, shown: str) -> None:
    assert storage.shown(uri) == shown


MOUNTS = {"pvc://claim": "/mnt/claim", "pvc://claim/sub/": "/mnt/claim/deep", "pvc://other": "/mnt/claimed"}


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/mnt/claim/runs/1/model", "pvc://claim/runs/1/model"),
        ("/mnt/claim/deep/model", "pvc://claim/sub/model"),
        ("/mnt/claimed/model", "pvc://other/model"),
        ("/mnt/claim", "pvc://claim"),
        ("/mnt/claim/two words", "pvc://claim/two%20words"),
        ("/elsewhere/two words", "file:///elsewhere/two%20words"),
    ],
)
def test_a_result_below_a_mount_has_the_volumes_uri(path: str, uri: str) -> None:
    assert storage.uri_of(Path(path), MOUNTS) == uri


def test_a_model_replaces_the_earlier_one_whole(tmp_path: Path) -> None:
    target = save_model(tmp_path / "model")
    (target / "left-over.txt").touch()
    storage.put_directory(save_model(tmp_path / "new", "new"), target)
    assert weights_of(target) == "new"
    assert not (target / "left-over.txt").exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "new"}


def test_a_name_as_long_as_a_file_system_allows_can_be_published_to(tmp_path: Path) -> None:
    target = tmp_path / ("m" * 255)
    storage.put_directory(save_model(tmp_path / "new", "new"), target)
    assert weights_of(target) == "new"
    storage.put_text("text", tmp_path / ("t" * 255))
    assert (tmp_path / ("t" * 255)).read_text() == "text"


def test_a_link_stays_a_link_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    real = save_model(tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(real)
    storage.put_directory(save_model(tmp_path / "new", "new"), link)
    assert link.is_symlink()
    assert weights_of(real) == "new"
    assert {entry.name for entry in tmp_path.iterdir()} == {"real", "link", "new"}


def _notes(target: Path) -> None:
    (target / "notes.txt").write_text("mine")


def _config_of_another_program(target: Path) -> None:
    (target / "config.json").write_text("{}")


def _models_below_a_model(target: Path) -> None:
    save_model(target / "another")
    for entry in (target / "another").iterdir():
        (target / entry.name).write_bytes(entry.read_bytes())


def _more_than_templates_beside_a_model(target: Path) -> None:
    _models_below_a_model(target)
    shutil.rmtree(target / "another")
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    "fill", [_notes, _config_of_another_program, _models_below_a_model, _more_than_templates_beside_a_model]
)
def test_a_directory_that_holds_something_else_than_a_model_is_left_alone(tmp_path: Path, fill: object) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    fill(target)  # type: ignore[operator]
    before = sorted(target.rglob("*"))
    with pytest.raises(UserError, match="mine") as raised:
        storage.put_directory(save_model(tmp_path / "new"), target)
    assert raised.value.failure.cause == "output_in_use"
    assert "output_model" in raised.value.failure.cure
    assert sorted(target.rglob("*")) == before


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    storage.ensure_replaceable(tmp_path / "model")


@pytest.mark.parametrize("place", ["/", "/.."])
def test_the_root_of_the_file_system_is_no_place_for_a_model(place: str) -> None:
    with pytest.raises(UserError, match="'/'"):
        storage.ensure_replaceable(Path(place))


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="this machine mounts nothing there")
def test_a_mounted_disk_is_no_place_for_a_model_and_a_directory_on_it_is() -> None:
    with pytest.raises(UserError, match="/dev/shm is where a disk or volume is mounted") as raised:
        storage.ensure_replaceable(Path("/dev/shm"))
    assert "/dev/shm/model" in raised.value.failure.cure
    storage.ensure_replaceable(Path("/dev/shm/model-of-nobody"))


def test_a_file_is_no_place_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        storage.ensure_replaceable(tmp_path / "file")


def test_the_base_model_and_the_data_are_never_replaced_by_the_model_trained_with_them(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    for needed in (base, base / "train.jsonl"):
        with pytest.raises(UserError, match="needs"):
            storage.ensure_replaceable(base, needed=[needed])
    storage.ensure_replaceable(tmp_path / "base-tuned", needed=[base])


def test_the_old_model_is_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = save_model(tmp_path / "model")
    rename = Path.rename

    def refuse_the_new_one(self: Path, to: Path) -> Path:
        if "arriving" in self.name:
            raise PermissionError(13, "no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(PermissionError):
        storage.put_directory(save_model(tmp_path / "new", "new"), target)
    assert weights_of(target) == "old"
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "new"}


def test_of_several_that_publish_at_once_one_model_is_there_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    faults: list[BaseException] = []

    def publish(number: int) -> None:
        source = save_model(tmp_path / "new" / str(number), str(number))
        try:
            for _ in range(30):
                storage.put_directory(source, target)
                storage.put_text(f"{number}" * 1000, tmp_path / "metrics.json")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert weights_of(target) in set("0123")
    assert len(set((tmp_path / "metrics.json").read_text())) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "metrics.json", "new"}


def test_a_place_that_cannot_be_written_is_the_users_to_mend_and_a_full_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="output_model"):
        storage.ensure_writable(tmp_path / "file" / "models", "output_model")

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        storage.ensure_writable(tmp_path, "output_model")


@pytest.mark.parametrize(
    ("uri", "file"), [("/out/m.json", "/out/m.json"), ("/out", "/out/metrics.json"), ("file:///o", "/o/metrics.json")]
)
def test_an_output_is_a_file_by_its_suffix_and_a_directory_else(uri: str, file: str) -> None:
    assert storage.output_place(uri, "output_metrics", "metrics.json").path == Path(file)
