"""Importing the operators is cheap: each DAG-parsing process does it, again for each file.

Aspects: modules that must stay out; no deprecation warning. The time is measured by ``bench/import_cost.py``.
"""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("kubernetes", "airflow.providers.cncf", "torch", "transformers", "training_hub")

IMPORT = """
import sys
import airflow.sdk
from airflow.sdk import Asset, BaseOperator
before = set(sys.modules)
from airflow_provider_finetune import FineTuneOperator, LoRAOperator
print(*sorted(set(sys.modules) - before), sep="\\n")
"""


def imported(*options: str) -> list[str]:
    """Return the modules that importing both operators adds to a fresh interpreter that has the Task SDK."""
    program = [sys.executable, *options, "-c", IMPORT]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_importing_the_operators_loads_nothing_heavy():
    modules = imported()
    assert "airflow_provider_finetune.operators.lora" in modules
    assert [name for name in modules if name.startswith(HEAVY)] == []


def test_importing_the_operators_uses_nothing_deprecated():
    imported("-W", "error:::airflow_provider_finetune")
