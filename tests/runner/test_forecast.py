"""Disk and memory are foreseen by arithmetic, and held against what the machine has.

* checkpoints of both algorithms and how many lie there at once, tokenised data, what is published and merged
* directories on one file system are added up; too small a one is named with all that should go there
* memory: what the kernel says, and each control group above, of both versions
"""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_finetune.runner import forecast, memory, merging
from airflow_provider_finetune.runner.failures import RunFailed
from airflow_provider_finetune.runner.forecast import Part, Sizes
from tests.runner.test_report import Told

GB = 10**9
MB = 10**6


@pytest.mark.parametrize(
    ("steps", "epochs", "at_epoch", "save_steps", "limit", "kept"),
    [
        (35, 5, True, 500, 3, 4),
        (35, 2, True, 500, 3, 2),
        (35, 5, False, 500, 3, 1),
        (35, 5, False, 10, 3, 4),
        (35, 5, False, 10, 1, 2),
        (35, 5, False, 10, None, 4),
        (350, 5, False, 10, None, 35),
    ],
)
def test_lora_keeps_some_checkpoints_and_one_more_while_it_is_written(
    steps: int, epochs: int, at_epoch: bool, save_steps: int, limit: int | None, kept: int
) -> None:
    # Each has the adapter and twice as much of Adam's; the last adapter lies beside them.
    size = forecast.lora_checkpoints(
        100 * MB, 9 * MB, steps=steps, epochs=epochs, at_epoch=at_epoch, save_steps=save_steps, limit=limit
    )
    assert size == kept * 310 * MB + 110 * MB


@pytest.mark.parametrize(
    ("at_epoch", "save_samples", "last_only", "limit", "full_state", "models"),
    [
        (True, 0, False, None, False, 3),
        (True, 0, True, None, False, 1),
        (True, 0, False, None, True, 3 + 9),
        (False, 100, False, None, True, 6),
        (True, 100, False, None, False, 9),
        (True, 100, False, 2, False, 3),
        (True, 0, False, 1, True, 2 + 6),
    ],
)
def test_sft_keeps_checkpoints_until_the_last_is_published(
    at_epoch: bool, save_samples: int, last_only: bool, limit: int | None, full_state: bool, models: int
) -> None:
    size = forecast.sft_checkpoints(
        GB,
        0,
        rows=200,
        epochs=3,
        at_epoch=at_epoch,
        save_samples=save_samples,
        last_only=last_only,
        limit=limit,
        full_state=full_state,
    )
    assert size == pytest.approx(models * GB, rel=0.01)


def test_a_training_that_was_measured_is_foreseen() -> None:
    """LoRA with rank 16 on all linear layers of 2.76 M weights: 5 epochs of 7 steps, files as they lay there."""
    counted = Sizes(weights=2_755_328 + 278_528, trained=278_528, largest=131_072)
    sent = {"num_epochs": 5, "checkpoint_at_epoch": True}
    three_and_the_adapter, one_more = 11_475_789, 3_440_499
    foreseen = forecast.checkpoints("lora_sft", sent, counted, 7_000, rows=400, steps=35)
    assert foreseen - 5 * forecast._OUTSIDE_WEIGHTS == pytest.approx(three_and_the_adapter + one_more, rel=0.03)
    assert forecast.tokenised("lora_sft", 45_584) == pytest.approx(737_702 + 45_584 * 8, rel=0.03)


def test_what_is_published_and_what_a_merge_writes_before() -> None:
    counted = Sizes(weights=1000 * MB, trained=10 * MB, largest=MB)
    assert forecast.published("sft", "adapter", counted, 2 * GB, 0) == (2 * GB, 2 * GB)
    assert forecast.published("sft", "adapter", counted, 4 * GB, 0) == (0, 4 * GB)
    assert forecast.published("lora_sft", "adapter", counted, 2 * GB, 0) == (0, 40 * MB)
    assert forecast.published("lora_sft", "merged", counted, 2 * GB, 0) == (2 * GB, 2 * GB)
    assert forecast.published("lora_sft", "both", counted, 2 * GB, 0) == (2 * GB, 2 * GB + 40 * MB)


def on_two_disks(parts: list[Part], free: int) -> list[str]:
    """Hold parts against ``free`` on each disk; directories below /a are on one."""
    events = Told()
    forecast.ensure_disk_suffices(
        parts, events, file_system=lambda path: int(path.parts[1] == "a"), free=lambda path: free
    )
    return events.lines


PARTS = [
    Part("tokenised data", Path("/a/data"), 20 * MB),
    Part("checkpoints", Path("/a/checkpoints"), 3 * GB),
    Part("merged model", Path("/a"), 0),
    Part("published model", Path("/b/model"), 2 * GB),
]


def test_each_file_system_gets_a_line_with_what_goes_there() -> None:
    assert on_two_disks(PARTS, 4 * GB) == [
        "disk: 3.0 GB needed of 4.0 GB free at /a/data (tokenised data 20 MB, checkpoints 3.0 GB)",
        "disk: 2.0 GB needed of 4.0 GB free at /b/model (published model 2.0 GB)",
    ]


def test_a_disk_that_is_too_small_is_named_with_all_that_should_go_there() -> None:
    with pytest.raises(RunFailed) as raised:
        on_two_disks(PARTS, 3 * GB)
    failure = raised.value.failure
    assert (failure.failure_class, failure.cause) == ("resources", "disk_too_small")
    assert failure.message == (
        "The training needs 3.02 GB on the disk of /a/data, which has 3.00 GB free: 0.020 GB for tokenised data in "
        "/a/data; 3.00 GB for checkpoints in /a/checkpoints"
    )
    assert "save_total_limit" in failure.cure


def test_free_space_is_that_of_the_nearest_directory_that_exists(tmp_path: Path) -> None:
    events = Told()
    forecast.ensure_disk_suffices([Part("a", tmp_path / "not" / "yet", 1), Part("b", tmp_path, 1)], events)
    (line,) = events.lines
    assert line.startswith("disk: 1 MB needed of "), "both are on one file system"
    with pytest.raises(RunFailed):
        forecast.ensure_disk_suffices([Part("a", tmp_path / "not" / "yet", 10**18)], events)


def test_a_merge_that_memory_does_not_suffice_for() -> None:
    needed = merging.memory_needed(100 * MB)
    events = Told()
    forecast.ensure_memory_suffices(needed, events, available=2 * GB)
    assert events.lines == [f"memory: {forecast.readable(needed)} needed to merge the adapter, 2.0 GB available"]
    with pytest.raises(RunFailed, match=r"needs 1\.22 GB of memory, and 0\.90 GB are available") as raised:
        forecast.ensure_memory_suffices(needed, events, available=900 * MB)
    assert (raised.value.failure.failure_class, raised.value.failure.cause) == ("resources", "memory_too_small")
    forecast.ensure_memory_suffices(needed, events, available=None)


def machine(root: Path, **files: str) -> Path:
    """Write files of /proc and /sys below ``root``; ``__`` in a name is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       32000000 kB\nMemAvailable:   20000000 kB\n"


def test_memory_is_what_the_kernel_calls_available_where_no_group_limits_it(tmp_path: Path) -> None:
    assert memory.available(tmp_path) is None
    machine(tmp_path, proc__meminfo=MEMINFO)
    assert memory.available(tmp_path) == 20_000_000 * 1024
    machine(tmp_path, proc__self__cgroup="0::/user\n")
    assert memory.available(tmp_path) == 20_000_000 * 1024


def group(directory: Path, limit: str, used: int, cached: int, *, version: int = 2) -> None:
    """Write a control group."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / names[0]).write_text(f"{limit}\n")
    (directory / names[1]).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(
        f"anon 1\n{'inactive_file' if version == 2 else 'total_inactive_file'} {cached}\n"
    )


def test_the_narrowest_group_on_the_way_up_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/pod/container\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "pod" / "container", "max", 3 * GB, 0)
    assert memory.available(tmp_path) == 20_000_000 * 1024
    group(top / "pod", str(8 * GB), 5 * GB, GB)
    assert memory.available(tmp_path) == 4 * GB


def test_in_a_container_the_limit_stands_at_the_top(tmp_path: Path) -> None:
    machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/../of/the/host\n")
    group(tmp_path / "sys/fs/cgroup", str(8 * GB), 9 * GB, 0)
    assert memory.available(tmp_path) == 0


def test_the_first_version_of_control_groups_is_read_as_well(tmp_path: Path) -> None:
    machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="4:cpu,memory:/docker/1\n1:name=systemd:/docker/1\n")
    group(tmp_path / "sys/fs/cgroup/memory", str(6 * GB), 5 * GB, GB, version=1)
    assert memory.available(tmp_path) == 2 * GB


def test_of_this_machine_something_is_known() -> None:
    assert (memory.available() or 0) > 10 * MB
