"""Memory in use on GPUs, asked of a library that answers as the driver's does."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner.gpu import Gpus

# Three GPUs with 1, 2 and 3 GB in use; the last one's name is GPU-c.
NVML = """
#include <string.h>
struct memory { unsigned long long total, free, used; };
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  if (index > 2) return 2;
  *handle = (void *)(unsigned long)(index + 1);
  return 0;
}
int nvmlDeviceGetHandleByUUID(const char *name, void **handle) {
  if (strcmp(name, "GPU-c")) return 6;
  *handle = (void *)3UL;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
  memory->total = 80000000000ULL;
  memory->used = (unsigned long)handle * 1000000000ULL;
  memory->free = memory->total - memory->used;
  return 0;
}
"""


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver's library."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    directory = tmp_path_factory.mktemp("nvml")
    (directory / "nvml.c").write_text(NVML)
    library = directory / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(directory / "nvml.c")], check=True)
    return library


@pytest.mark.parametrize(
    ("visible", "gigabytes"), [(None, 3), ("0", 1), ("1,0", 2), ("GPU-c", 3), ("", 0), ("-1", 0), ("7", 0)]
)
def test_the_fullest_of_the_visible_gpus_counts(
    nvml: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, gigabytes: int
) -> None:
    load = ctypes.CDLL

    def loaded(name: str) -> Any:
        assert name == "libnvidia-ml.so.1"
        return load(str(nvml))

    monkeypatch.setattr(ctypes, "CDLL", loaded)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Gpus().memory_used() == gigabytes * 10**9


def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert Gpus().memory_used() == 0
