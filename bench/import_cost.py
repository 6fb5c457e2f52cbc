"""Measure what importing both operators adds to a DAG-parsing process that already has the Task SDK.

Run it with an interpreter that has Airflow and this package: ``python bench/import_cost.py``.
It exits with 1 where the goal is missed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

GOAL_SECONDS = 0.05
RUNS = 7

IMPORT = """
import sys, time
from airflow.sdk import DAG, Asset, BaseOperator
modules, begin = set(sys.modules), time.process_time()
from airflow_provider_finetune import FineTuneOperator, LoRAOperator
print(time.process_time() - begin, len(set(sys.modules) - modules))
"""


def measure() -> tuple[float, int]:
    """Return CPU seconds and number of new modules in one fresh interpreter."""
    output = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout
    seconds, modules = output.split()
    return float(seconds), int(modules)


def main() -> int:
    """Print the median of several fresh interpreters beside the goal."""
    measure()  # writes the byte code
    runs = [measure() for _ in range(RUNS)]
    median = statistics.median(seconds for seconds, _ in runs)
    print(
        f"import of both operators: {median:.4f} s CPU (median of {RUNS}, max {max(runs)[0]:.4f} s), "
        f"{runs[0][1]} modules; goal: at most {GOAL_SECONDS} s"
    )
    return 0 if median <= GOAL_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
