"""DAG files run by a real Airflow inside a test: a home of its own, a migrated SQLite database, and ``dag.test()``,
which runs every task in this process with Airflow's own code, templates, XCom, triggers and retries included.

Import the fixtures into a conftest.py, which may override ``constants``.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import AIRFLOW_HOME

# Airflow reads these while it is imported.
os.environ.update(
    AIRFLOW__CORE__DAGS_FOLDER=str(AIRFLOW_HOME / "dags"),
    AIRFLOW__CORE__UNIT_TEST_MODE="False",
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{AIRFLOW_HOME}/airflow.db",
    NO_COLOR="1",
)

try:
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
except ImportError:  # Airflow 3.1
    from airflow.models.dagbag import DagBag, sync_bag_to_db  # type: ignore[no-redef]

_ids = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def airflow_database() -> None:
    """Make the database once."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.utils.db import initdb

    initdb()
    DagBundlesManager().sync_bundles_to_db()


@pytest.fixture
def constants() -> dict[str, Any]:
    """Names that a DAG file may use, and their values."""
    return {}


@pytest.fixture
def parse(constants: dict[str, Any]) -> Iterator[Callable[..., SimpleNamespace]]:
    """Write a DAG file and let Airflow read it; return its ``dag`` (or ``None``) and its import ``error``."""
    file = AIRFLOW_HOME / "dags" / "file.py"

    def parse_dag(body: str, *, dag_arguments: str = "") -> SimpleNamespace:
        name = f"dag_{next(_ids)}"
        header = (
            "from datetime import timedelta\nfrom pathlib import Path\n"
            "from airflow.sdk import DAG, Asset, Param, task, task_group\n"
            "from airflow_provider_finetune import FineTuneOperator, LoRAOperator\n"
            + "".join(f"{constant} = {value!r}\n" for constant, value in constants.items())
            + f"with DAG({name!r}, schedule=None, {dag_arguments}) as dag:\n"
        )
        file.write_text(header + textwrap.indent(textwrap.dedent(body).strip("\n"), "    "), encoding="utf-8")
        return _read(file, name)

    yield parse_dag
    file.unlink(missing_ok=True)


def _read(file: Path, name: str) -> SimpleNamespace:
    bag = DagBag(str(file))
    sync_bag_to_db(bag, "dags-folder", None)  # on Airflow 3.1 dag.test() does not
    return SimpleNamespace(dag=bag.dags.get(name), error="".join(bag.import_errors.values()))


@pytest.fixture
def run(parse: Callable[..., SimpleNamespace], capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run a DAG file; return its state, task instances by task id (``task/index`` where mapped), and its log."""

    def run_dag(body: str, *, dag_arguments: str = "", **kwargs: Any) -> SimpleNamespace:
        return _test(parse(body, dag_arguments=dag_arguments), capfd, **kwargs)

    return run_dag


@pytest.fixture
def run_file(capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run the DAG of a file, which has the file's name; return what ``run`` does."""

    def run_dag(file: Path, **kwargs: Any) -> SimpleNamespace:
        return _test(_read(file, file.stem), capfd, **kwargs)

    return run_dag


def _test(parsed: SimpleNamespace, capfd: pytest.CaptureFixture[str], **kwargs: Any) -> SimpleNamespace:
    assert not parsed.error, parsed.error
    capfd.readouterr()
    dag_run = parsed.dag.test(**kwargs)
    log = "".join(capfd.readouterr())
    tasks = {
        ti.task_id if ti.map_index < 0 else f"{ti.task_id}/{ti.map_index}": ti for ti in dag_run.get_task_instances()
    }
    return SimpleNamespace(state=str(dag_run.state), tasks=tasks, log=log, dag=parsed.dag, run_id=dag_run.run_id)


@pytest.fixture
def xcom() -> Callable[..., Any]:
    """Read what a task instance has pushed."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    def pull(ti: Any, key: str = "return_value") -> Any:
        pushed = select(XComModel).where(
            XComModel.dag_id == ti.dag_id,
            XComModel.run_id == ti.run_id,
            XComModel.task_id == ti.task_id,
            XComModel.map_index == ti.map_index,
            XComModel.key == key,
        )
        with create_session() as session:
            return XComModel.deserialize_value(session.scalars(pushed).one())

    return pull
