"""What every test has: an Airflow home of its own, set before Airflow is imported, and the training interpreter."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

for name in [name for name in os.environ if name.startswith(("AIRFLOW__", "AIRFLOW_"))]:
    del os.environ[name]  # the settings of whoever runs the tests

AIRFLOW_HOME = Path(tempfile.mkdtemp(prefix="airflow-provider-finetune-"))
os.environ["AIRFLOW_HOME"] = str(AIRFLOW_HOME)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
(AIRFLOW_HOME / "dags").mkdir()


def pytest_unconfigure() -> None:
    shutil.rmtree(AIRFLOW_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def train_python() -> Path:
    """The interpreter with training-hub."""
    path = Path(os.environ.get("FINETUNE_TRAIN_PYTHON") or Path(__file__).parents[1] / ".venv/train/bin/python")
    if not path.exists():
        pytest.fail(f"There is no {path}: `make .venv/train/.done` makes it, FINETUNE_TRAIN_PYTHON names another")
    return path
