"""Each attempt has a directory of its own, whoever else makes one at the same time.

* numbers go up from the highest that is there
* attempts at the same moment, relative places, links
* a place that cannot be written is the user's to mend, a full disk is not
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.tries import workdir


def test_a_new_lineage_starts_behind_the_highest_number(tmp_path: Path) -> None:
    for name in ("2", "10", "spec.json", "v3"):
        (tmp_path / name).mkdir()
    assert workdir.create(tmp_path).path == tmp_path / "11"


def test_attempts_at_the_same_moment_get_directories_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [attempt.path.name for attempt in pool.map(lambda _: workdir.create(tmp_path / "task"), range(40))]
    assert sorted(map(int, made)) == list(range(1, 41))


def test_a_relative_place_becomes_absolute_so_that_it_has_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert workdir.create(Path("task")).chart.as_uri() == (tmp_path / "task" / "1" / "loss.html").as_uri()


def test_a_place_behind_a_link_is_used(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    workdir.create(tmp_path / "link")
    assert (tmp_path / "disk" / "1").is_dir()


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed) as raised:
        workdir.create(tmp_path / "file" / "task")
    assert (raised.value.failure.failure_class, raised.value.failure.cause) == ("user", "work_dir_not_writable")
    assert str(tmp_path / "file" / "task") in raised.value.failure.message


def test_a_full_disk_may_have_room_at_the_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RunFailed) as raised:
        workdir.create(tmp_path)
    assert (raised.value.failure.failure_class, raised.value.failure.cause) == ("resources", "disk_full")
