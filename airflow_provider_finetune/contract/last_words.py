"""What the last words of libraries and drivers mean: an exception's text, or the end of a log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.outcome import PEER_FAILED, Failure

_LONGEST = 500

NCCL_FAILURE = "nccl_failure"
GPU_OUT_OF_MEMORY = "gpu_out_of_memory"


@dataclass(frozen=True)
class _Meaning:
    cause: str
    pattern: re.Pattern[str]
    what: str
    cure: str


def _meaning(cause: str, pattern: str, what: str, cure: str) -> _Meaning:
    return _Meaning(cause, re.compile(pattern, re.IGNORECASE | re.DOTALL), what, cure)


_MEANINGS = (
    _meaning(
        GPU_OUT_OF_MEMORY,
        r"(CUDA|HIP) out of memory|(CUDA|HIP) error: out of memory|cuda failure.{0,20}out of memory|"
        r"OutOfMemoryError: (CUDA|HIP)|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation",
        "GPU memory did not suffice",
        "Lower training_max_tokens_per_gpu or training_max_seq_len, take GPUs with more memory, or more of them for "
        "OSFT and SFT, which share the model out. See that no other program is on the GPU",
    ),
    _meaning(
        "shared_memory_full",
        r"out of shared memory|insufficient shared memory|(No space left|extend).*/dev/shm|/dev/shm.*No space left",
        "The shared memory of the container is used up",
        "Mount an emptyDir with medium: Memory on /dev/shm by kubernetes_config; a container has 64 MB there by itself",
    ),
    _meaning(
        "out_of_memory",
        r"\bMemoryError\b|can't allocate memory|Cannot allocate memory|std::bad_alloc|out of memory",
        "Memory did not suffice",
        "Raise training_resource_memory_per_worker, or lower training_max_tokens_per_gpu or training_max_seq_len",
    ),
    _meaning(
        "driver_too_old",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|"
        r"forward compatibility was attempted",
        "The node's NVIDIA driver is older than the CUDA of the image's PyTorch",
        "Upgrade the node's driver, take an image with a PyTorch for an older CUDA, or choose other nodes by "
        "kubernetes_config",
    ),
    _meaning(
        "no_cuda_device",
        r"no CUDA-capable device|No CUDA GPUs are available|Found no NVIDIA driver|not compiled with CUDA enabled|"
        r"(cannot|could not) find any torch accelerator",
        "The training has no CUDA device that PyTorch can use",
        "Look at the node's driver and device plugin, and whether the image's PyTorch is made for its GPU",
    ),
    _meaning(
        "gpu_broken",
        r"uncorrectable ECC error|fallen off the bus|CUDA-capable device\(s\) is/are busy|hardware stack error",
        "A GPU of the node is broken or taken",
        "Let the node be looked at ('nvidia-smi', the kernel's Xid lines); a retry may get another one",
    ),
    _meaning(
        "disk_full",
        r"No space left on device|Disk quota exceeded",
        "The disk is full",
        "Free space under the work directory, or put it on a larger disk (pvc_path)",
    ),
    # What the collective libraries of PyTorch say where another process of the training is gone.
    _meaning(
        PEER_FAILED,
        r"(gloo|nccl).*(closed by peer|reset by peer|broken pipe|timed out waiting|remote process exited)",
        "Another process of this training has ended",
        "The reason is with the process that ended first: look at the other nodes' logs",
    ),
    _meaning(
        NCCL_FAILURE,
        r"nccl(Unhandled|System|Internal|Invalid|Remote)\w*|NCCL (error|failure|timeout|communicator was aborted)|"
        r"Watchdog caught collective operation timeout",
        "The GPUs' processes could not go on talking to each other (NCCL)",
        "A retry may get other nodes. Where it stays so, look at the network between them and at /dev/shm; "
        "training_envs={'NCCL_DEBUG': 'INFO'} has NCCL say more in train.log",
    ),
)


def meaning(text: str) -> Failure | None:
    """Return what an exception's text means, ``None`` where it is none that we know.

    :param text: its type and message, or any line of a log.
    """
    known = next((one for one in _MEANINGS if one.pattern.search(text)), None)
    if known is None:
        return None
    return failure_of(known.cause, f"{known.what}: {_shown(text)}", known.cure)


_RAISED = re.compile(r"(?:\[rank\d+\]: )?([A-Za-z_][\w.]*(?:Error|Exception|Interrupt))(?:: (.*))?$")
"""The last line of a traceback; PyTorch puts the process in front of it."""


def last_exception(lines: Sequence[str]) -> str:
    """Return the last line of the last traceback of a log, empty where there is none.

    :param lines: the log's end.
    """
    return next((line.strip() for line in reversed(lines) if _RAISED.match(line.strip())), "")


def meaning_of_log(lines: Sequence[str]) -> Failure | None:
    """Return what the end of a log means: memory first, as what it ends is often told by other processes as well.

    :param lines: the log's end.
    """
    raised = [line.strip() for line in lines if _RAISED.match(line.strip()) or _IN_PASSING.search(line)]
    found = [failure for line in reversed(raised) if (failure := meaning(line))]
    return next((failure for failure in found if failure.cause == GPU_OUT_OF_MEMORY), next(iter(found), None))


_IN_PASSING = re.compile(r"CUDA out of memory|terminate called|Watchdog caught|NCCL WARN.*(memory|space)|bad_alloc")
"""What is printed beside tracebacks, by C++."""


def behind(failure: Failure, lines: Sequence[str]) -> Failure:
    """Return what a failure of the communication between GPUs really was, by what all processes have printed.

    :param failure: as one process tells it.
    :param lines: the log's end.
    """
    if failure.cause not in (NCCL_FAILURE, PEER_FAILED):
        return failure
    found = meaning_of_log(lines)
    if found is None or found.cause in (NCCL_FAILURE, PEER_FAILED):
        return failure
    return failure_of(found.cause, f"{found.message.rstrip('.')}. The other processes only lost it", found.cure)


def _shown(text: str) -> str:
    return next((line for line in text.strip().splitlines() if line.strip()), "")[:_LONGEST]
