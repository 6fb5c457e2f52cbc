"""What an exception of a library means for the user, read out of the whole chain of its causes."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from airflow_provider_finetune.runner.failures import RunFailed, UserError, explain

SHM = "shared_memory_full"


def caused_by(cause: BaseException) -> BaseException:
    """Return an exception that was raised because of another."""
    try:
        try:
            raise cause
        except BaseException as error:
            raise RuntimeError("the library gave up") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("wrap", [lambda error: error, caused_by], ids=["itself", "as a cause"])
@pytest.mark.parametrize(
    ("error", "failure_class", "cause"),
    [
        (UserError("dataset_empty", "no row", "write one"), "user", "dataset_empty"),
        (RunFailed("infrastructure", "hub_unreachable", "no answer", "wait"), "infrastructure", "hub_unreachable"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "resources", "disk_full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "resources", "disk_full"),
        (shutil.Error([("a", "b", f"[Errno 122] {os.strerror(errno.EDQUOT)}: 'b'")]), "resources", "disk_full"),
        (Exception("I/O error: No space left on device (os error 28)"), "resources", "disk_full"),
        (MemoryError(), "resources", "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "resources", "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "resources", "gpu_out_of_memory"),
        (RuntimeError("NCCL Error 1: cuda failure 2 'out of memory'"), "resources", "gpu_out_of_memory"),
        (RuntimeError("unable to allocate shared memory: /dev/shm/t: No space left on device"), "resources", SHM),
        (RuntimeError("worker (pid 7) is killed by signal: Bus error. out of shared memory"), "resources", SHM),
        (RuntimeError("NCCL error in: NCCLUtils.cpp:77, unhandled system error"), "infrastructure", "nccl_failure"),
        (RuntimeError("Watchdog caught collective operation timeout"), "infrastructure", "nccl_failure"),
        (RuntimeError("[gloo] Connection closed by peer [10.0.0.1]:5"), "infrastructure", "peer_failed"),
        (RuntimeError("The NVIDIA driver on your system is too old"), "infrastructure", "driver_too_old"),
        (RuntimeError("No CUDA GPUs are available"), "infrastructure", "no_cuda_device"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "infrastructure", "gpu_broken"),
        (ValueError("something\nlong"), "infrastructure", "library_crash"),
    ],
)
def test_a_known_fault_is_named_wherever_it_stands_in_the_chain(
    error: BaseException, failure_class: str, cause: str, wrap: object
) -> None:
    failure = explain(wrap(error))  # type: ignore[operator]
    assert (failure.failure_class, failure.cause) == (failure_class, cause)
    assert failure.message
    assert failure.cure


def test_an_unknown_fault_is_told_by_its_type_and_first_line() -> None:
    assert explain(ValueError("first\nsecond")).message == "The training ended with ValueError: first"
    assert explain(SystemExit()).message == "The training ended with SystemExit: "


def test_a_chain_that_bites_its_own_tail_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert explain(one).cause == "library_crash"
