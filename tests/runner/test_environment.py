"""The libraries start in a container that lacks what a machine has.

* no home that can be written, no name for the user id, no temporary directory
* what is set outside and can be used stays
* the programs of the interpreter that trains are found first
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from airflow_provider_finetune.runner import environment
from airflow_provider_finetune.runner.environment import child_environment


def test_what_is_set_and_can_be_used_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    wanted = {"HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": "/cache", "OMP_WAIT_POLICY": "ACTIVE"}
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    found = child_environment(tmp_path / "scratch")
    assert wanted.items() <= found.items()
    assert found["TMPDIR"] == tempfile.gettempdir()
    assert not (tmp_path / "scratch").exists(), "nothing is made that nobody needs"


def test_a_home_that_cannot_be_written_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    assert child_environment(tmp_path)["HOME"] == str(tmp_path / "home")
    assert (tmp_path / "home").is_dir()


def test_a_user_id_without_a_name_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert child_environment(tmp_path)["LOGNAME"] == f"user-{os.getuid()}"


def test_without_a_temporary_directory_the_attempt_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_usable() -> str:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']")

    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    assert environment.child_environment(tmp_path)["TMPDIR"] == str(tmp_path / "tmp")
    assert (tmp_path / "tmp").is_dir()


def test_the_interpreters_own_programs_come_first_and_torchrun_trains_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHON_EXEC", raising=False)
    monkeypatch.setenv("PATH", "/of/another")
    found = child_environment(tmp_path)
    assert found["PATH"].split(os.pathsep) == [os.path.dirname(sys.executable), "/of/another"]
    assert found["PYTHON_EXEC"] == sys.executable
