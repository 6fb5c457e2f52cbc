"""What the last words of libraries mean, in the log of several processes and where an exception is all there is.

* the end of a log: the last traceback that is known, and memory before what follows from it
* a failure of the communication between GPUs that was really one of memory
* what is not known stays what it was
"""

from __future__ import annotations

import pytest

from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.last_words import behind, last_exception, meaning, meaning_of_log

OUT_OF_MEMORY = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 3 has a total"
NCCL = "[rank0]: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, unhandled system error"
PEER = "[rank1]: RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4711"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([OUT_OF_MEMORY, NCCL, PEER], "gpu_out_of_memory"),
        (["ValueError: no", NCCL], "nccl_failure"),
        (["terminate called after throwing an instance of 'std::bad_alloc'"], "out_of_memory"),
        (["OSError: [Errno 28] No space left on device", "  more"], "disk_full"),
        (["step 1", "the lecture on what to do when out of memory"], None),
        (["ValueError: no"], None),
        ([], None),
    ],
)
def test_the_end_of_a_log_means_what_its_tracebacks_say(lines: list[str], cause: str | None) -> None:
    found = meaning_of_log(lines)
    assert (found.cause if found else None) == cause


def test_a_failure_of_nccl_or_of_a_peer_that_was_really_one_of_memory_is_told_as_that() -> None:
    for line in (NCCL, PEER):
        told = meaning(line)
        assert told is not None
        really = behind(told, [OUT_OF_MEMORY, line])
        assert (really.failure_class, really.cause) == ("resources", "gpu_out_of_memory")
        assert really.parameter == "training_max_tokens_per_gpu"
        assert "Tried to allocate 20.00 MiB" in really.message
        assert behind(told, ["step 1", line]) == told


def test_what_is_no_failure_of_communication_is_left_as_it_is() -> None:
    crash = failure_of("library_crash", "m", "c")
    assert behind(crash, [OUT_OF_MEMORY]) == crash


def test_the_last_line_of_the_last_traceback_is_found_among_others() -> None:
    lines = ["ValueError: first", "[rank1]: torch.SomeError: second, at 5", "frame #1: /lib/libc.so", "step 3"]
    assert last_exception(lines) == "[rank1]: torch.SomeError: second, at 5"
    assert last_exception(["step 3"]) == ""
