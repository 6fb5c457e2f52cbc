"""A stand-in for the runner, and DAG files that use it: ``LOCAL`` holds the arguments of a task."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.dag_runs import airflow_database, parse, run, xcom

__all__ = ["airflow_database", "parse", "run", "xcom"]


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A program that takes the runner's command line and speaks its protocol; pass it as ``local_python``."""
    program = tmp_path / "stand-in"
    source = Path(__file__).with_name("stand_in_runner.py").read_text(encoding="utf-8")
    program.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


@pytest.fixture
def local(stand_in: str, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a task that trains with the stand-in runner: ``LOCAL`` in a DAG file."""
    return {
        "launcher": "local",
        "local_python": stand_in,
        "pvc_path": str(tmp_path / "work"),
        "dataset": "file:///data/train.jsonl",
    }


@pytest.fixture
def constants(local: dict[str, Any]) -> dict[str, Any]:
    return {"LOCAL": local}
