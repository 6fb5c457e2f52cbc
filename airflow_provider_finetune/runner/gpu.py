"""Memory in use on the GPUs that a training may use, by the driver's own library (NVML).

A training's processes are those of a library, which tells nothing of it or each its own part. PyTorch is not asked: it
would take memory on the GPU for itself.
"""

from __future__ import annotations

import ctypes
import os


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Gpus:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` names, all of them where it is not set; none without a driver."""

    def __init__(self) -> None:
        self._library = _library()
        self._handles = _handles(self._library) if self._library else []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._handles)

    def memory_used(self) -> int:
        """Return the bytes in use now on the GPU that has most in use, by whomever; 0 where nobody tells."""
        most = 0
        for handle in self._handles:
            memory = _Memory()
            if self._library and self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
                most = max(most, memory.used)
        return most


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def _handles(library: ctypes.CDLL) -> list[ctypes.c_void_p]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        count = ctypes.c_uint()
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        names = [str(number) for number in range(count.value)]
    else:
        names = [name.strip() for name in visible.split(",")]
    handles = []
    for name in names:
        handle = ctypes.c_void_p()
        if name.isdecimal():
            status = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
        else:
            status = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        if status == 0:
            handles.append(handle)
    return handles
