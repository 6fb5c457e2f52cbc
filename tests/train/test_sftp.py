"""Data, models and results on a server that speaks SFTP, for real.

* what is published is whole, replaced and found again, and what is fetched is what lies there
* a server that this machine does not know is not spoken to; who is not let in is told why; who is gone may come back
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paramiko import ECDSAKey

from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import publishing, storage
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.tries.workdir import WorkDir
from tests.train.sftp_server import Sftp, serving
from tests.train.test_places import ADAPTER, FULL, quiet, save
from tests.train.test_publishing import told


@pytest.fixture
def sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sftp]:
    """A server of the test's own, whose client's home is that of the test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with serving(tmp_path / "home") as server:
        yield server


def fetched(uri: str, into: Path) -> list[str]:
    files = storage.fetch(uri, "dataset", into, quiet)
    return [file.relative_to(into).as_posix() for file in files]


def refused(call: Callable[[], object]) -> Failure:
    with pytest.raises(RunFailed) as raised:
        call()
    return raised.value.failure


def test_a_model_is_published_replaced_and_fetched_as_a_base_model(sftp: Sftp, tmp_path: Path) -> None:
    place = storage.place(f"{sftp.url}{tmp_path}/deep/models/m", "output_model")
    assert not place.holds_model()
    for number, files in enumerate([ADAPTER, FULL]):
        place.ensure_replaceable()
        place.ensure_writable(quiet)
        place.put_model(save(tmp_path / str(number), files), quiet)
    assert place.holds_model()
    assert {path.name: path.read_text() for path in (tmp_path / "deep/models/m").iterdir()} == FULL
    assert storage.sizes(place.uri, "training_base_model", what="model") == {name: len(FULL[name]) for name in FULL}
    assert fetched(place.uri, tmp_path / "base") == sorted(FULL)


def test_a_connection_that_breaks_while_a_model_is_published_is_made_anew(
    sftp: Sftp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_PAUSES", (0.01,))
    out = tmp_path / "m"
    spec = TrainingSpec(
        algorithm="lora_sft", base_model="b", dataset="d", work_dir="w", output_model=f"{sftp.url}{out}"
    )
    sftp.cut.add("adapter_model.safetensors")
    with told() as (events, messages):
        place = publishing._put("adapter", save(tmp_path / "adapter", ADAPTER), spec, WorkDir(tmp_path), events)
    assert place.holds_model()
    assert {path.name for path in out.iterdir()} == set(ADAPTER)
    (said,) = [message["message"] for message in messages]
    assert "It is published again in 0 s" in said


def test_data_are_one_file_or_all_below_a_directory(sftp: Sftp, tmp_path: Path) -> None:
    save(tmp_path / "rows" / "deep", {"b.jsonl": "b"})
    (tmp_path / "rows" / "a.jsonl").write_text("a")
    rows = f"{sftp.url}{tmp_path}/rows"
    assert fetched(f"{rows}/a.jsonl", tmp_path / "one") == ["a.jsonl"]
    assert fetched(rows.replace("sftp:", "ssh:"), tmp_path / "all") == ["a.jsonl", "deep/b.jsonl"]


def test_a_file_takes_its_place_when_it_is_whole_and_leaves_nothing_where_it_cannot(sftp: Sftp, tmp_path: Path) -> None:
    metrics = tmp_path / "out" / "m.json"
    for text in ("old", "new"):
        storage.output_place(f"{sftp.url}{metrics}", "output_metrics", "metrics.json").put_text(text)
        assert metrics.read_text() == text
    assert f"write {metrics}" not in sftp.asked
    (tmp_path / "out" / "directory.json" / "mine").mkdir(parents=True)
    failure = refused(
        lambda: storage.output_place(f"{sftp.url}{tmp_path}/out/directory.json", "o", "metrics.json").put_text("text")
    )
    assert "directory.json cannot be written" in failure.message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["directory.json", "m.json"]


def _with_an_unknown_host_key(sftp: Sftp) -> None:
    (sftp.home / ".ssh" / "known_hosts").write_text("")


def _with_another_host_key(sftp: Sftp) -> None:
    known_hosts = sftp.home / ".ssh" / "known_hosts"
    host = known_hosts.read_text().split()[0]
    known_hosts.write_text(f"{host} ecdsa-sha2-nistp256 {ECDSAKey.generate().get_base64()}\n")


def _without_a_key(sftp: Sftp) -> None:
    (sftp.home / ".ssh" / "id_ecdsa").unlink()


def _with_a_key_that_is_not_let_in(sftp: Sftp) -> None:
    ECDSAKey.generate().write_private_key_file(str(sftp.home / ".ssh" / "id_ecdsa"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_with_an_unknown_host_key, "its host key is not one that this machine knows"),
        (_with_another_host_key, "its host key is not one that this machine knows"),
        (_without_a_key, "it lets nobody in with the private keys of this machine"),
        (_with_a_key_that_is_not_let_in, "it lets nobody in with the private keys of this machine"),
    ],
)
def test_a_server_that_is_not_known_or_lets_nobody_in_is_told_before_training(
    sftp: Sftp, tmp_path: Path, spoil: Callable[[Sftp], None], said: str
) -> None:
    spoil(sftp)
    place = f"{sftp.url}{tmp_path}/x"
    failure = refused(lambda: storage.place(place, "output_model"))
    assert (failure.failure_class, failure.cause) == ("user", "output_not_writable")
    assert f"output_model: {place} cannot be reached: {said}" in failure.message
    assert ".ssh" in failure.cure
    assert refused(lambda: fetched(place, tmp_path / "into")).cause == "dataset_unreadable"
    assert not sftp.asked


def test_what_the_run_needs_is_told_from_the_same_path_on_another_server(sftp: Sftp, tmp_path: Path) -> None:
    place = storage.place(f"{sftp.url}{tmp_path}/m", "output_model")
    place.ensure_replaceable([f"sftp://trainer@another-host{tmp_path}/m", f"{sftp.url}{tmp_path}/m2"])
    needed = f"{sftp.url}{tmp_path}/m/rows.jsonl".replace("sftp:", "ssh:")
    assert refused(lambda: place.ensure_replaceable([needed])).cause == "output_in_use"


def test_a_server_that_is_not_there_may_be_there_for_a_retry() -> None:
    failure = refused(lambda: storage.place("sftp://trainer@127.0.0.1:9/x", "output_model"))
    assert (failure.failure_class, failure.cause) == ("infrastructure", "output_unreachable")
