"""The runner as one file:

* the same source gives the same bytes;
* it holds the contract and the runner, and nothing of Airflow's side;
* it starts with nothing but the standard library;
* the wheel carries it, and an installation from the wheel hands out just those bytes;
* a command writes it for those who build an image;
* an editable installation, which carries none, builds it from the source.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from airflow_provider_finetune.archive import build_runner, runner_bytes

ROOT = Path(__file__).parents[2]

BARE = [sys.executable, "-I", "-S"]
"""Python without site-packages: what a container has that never heard of Airflow."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """The package as another checkout has it: other times and other modes."""
    package = tmp_path / "airflow_provider_finetune"
    shutil.copytree(ROOT / package.name, package, copy_function=shutil.copyfile)
    for path in package.rglob("*.py"):
        os.utime(path, (0, 2_000_000_000))
        path.chmod(0o600)
    return package


def test_two_builds_are_identical_whatever_time_and_mode_the_files_have(copied_package: Path):
    program = "import runpy, sys; sys.stdout.buffer.write(runpy.run_path(sys.argv[1])['build_runner']())"
    command = [*BARE, "-c", program, str(copied_package / "archive.py")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == build_runner()


def test_it_holds_contract_and_runner_and_nothing_of_airflows_side():
    names = zipfile.ZipFile(io.BytesIO(build_runner())).namelist()
    folders = {name.removeprefix("airflow_provider_finetune/").split("/")[0] for name in names}
    assert folders == {"__main__.py", "__init__.py", "contract", "runner"}


def test_a_command_writes_it_for_those_who_build_an_image(tmp_path: Path):
    command = [sys.executable, "-m", "airflow_provider_finetune.archive"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout == runner_bytes()


def test_it_starts_with_nothing_but_the_standard_library(tmp_path: Path):
    runner = tmp_path / "finetune-runner.pyz"
    runner.write_bytes(build_runner())
    _assert_shows_help(runner)


def test_the_wheel_carries_it_and_hands_it_out(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    runner = tmp_path / "airflow_provider_finetune" / "finetune-runner.pyz"
    assert runner.read_bytes() == build_runner()
    _assert_shows_help(runner)

    runner.write_bytes(b"as shipped")
    program = "import runpy, sys; sys.stdout.buffer.write(runpy.run_path(sys.argv[1])['runner_bytes']())"
    command = [*BARE, "-c", program, str(runner.with_name("archive.py"))]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"as shipped"


def test_the_wheel_carries_what_type_checkers_and_airflow_look_for(wheel: Path):
    content = zipfile.ZipFile(wheel)
    assert "airflow_provider_finetune/py.typed" in content.namelist()
    (entry_points,) = (name for name in content.namelist() if name.endswith("entry_points.txt"))
    assert "[apache_airflow_provider]\nprovider_info = " in content.read(entry_points).decode()


def test_an_installation_without_the_file_builds_it_from_the_source():
    assert not (ROOT / "airflow_provider_finetune" / "finetune-runner.pyz").exists()
    assert runner_bytes() == build_runner()


def _assert_shows_help(runner: Path) -> None:
    done = subprocess.run([*BARE, str(runner), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
