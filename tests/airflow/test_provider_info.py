"""The provider as Airflow's own commands see it, where the package is installed:

* it is listed, with its version and its operators;
* its settings have their defaults and can be set;
* every module it names can be imported, and no setting is without a description;
* describing it imports nothing of Airflow, which has no configuration yet when it asks.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_finetune import __version__
from airflow_provider_finetune.provider_info import get_provider_info

NAME = "airflow-provider-finetune"


def _is_installed() -> bool:
    return any(
        point.dist and point.dist.name == NAME for point in importlib.metadata.entry_points(name="provider_info")
    )


installed = pytest.mark.skipif(not _is_installed(), reason=f"{NAME} is not installed in this environment")


def airflow(*arguments: str, **environment: str) -> str:
    # Not `python -m airflow`, which puts this folder on the path: the package that is installed is what counts.
    command = [str(Path(sys.executable).with_name("airflow")), *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@installed
def test_airflow_lists_the_provider_with_its_version():
    rows = json.loads(airflow("providers", "list", "--output", "json"))
    assert [row["version"] for row in rows if row["package_name"] == NAME] == [__version__]


@installed
def test_airflow_shows_the_whole_description_of_the_provider():
    (shown,) = json.loads(airflow("providers", "get", NAME, "--full", "--output", "json"))
    assert shown["description"] == get_provider_info()["description"]
    assert "airflow_provider_finetune.operators.lora" in str(shown)


@installed
def test_a_setting_has_its_default():
    assert airflow("config", "get-value", "finetune", "launcher").strip() == "trainjob"


@installed
def test_a_setting_is_read_from_the_environment():
    value = airflow("config", "get-value", "finetune", "launcher", AIRFLOW__FINETUNE__LAUNCHER="local")
    assert value.strip() == "local"


def test_every_module_named_can_be_imported():
    for entry in get_provider_info()["operators"]:
        for module in entry["python-modules"]:
            importlib.import_module(module)


def test_every_setting_is_described_and_says_since_when():
    options = get_provider_info()["config"]["finetune"]["options"]
    of_a_cluster = {"image", "pvc_path", "deferrable", "deployment_id", "trainer_api", "reads_per_second"}
    assert {"launcher", "work_dir", "local_python", *of_a_cluster} == set(options)
    assert all(option["description"] and option["version_added"] for option in options.values())


def test_describing_the_provider_imports_nothing_of_airflow():
    program = (
        "import sys\n"
        "from airflow_provider_finetune.provider_info import get_provider_info\n"
        "get_provider_info()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('airflow', 'kubernetes')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
