"""The parent of the training says truly how its child has ended, and never waits for ever or leaves it behind.

The child is a real process, a few lines of Python in place of the training.

* what it reports arrives, also where it leaves somebody behind who holds its pipes
* several children of one attempt; whose word counts where several processes fail; orphans of a container
* an end by a signal, by the kernel, or of its own; which of several causes is told
* a fault while it is followed ends it as well
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import supervisor as module
from airflow_provider_finetune.runner.log import RunLog
from airflow_provider_finetune.runner.stopping import Stop
from airflow_provider_finetune.runner.supervisor import Supervisor
from airflow_provider_finetune.runner.tries.workdir import WorkDir

Start = Callable[..., Supervisor]

PRELUDE = """\
#!{python}
import json, os, signal, subprocess, sys, time
from pathlib import Path
here = Path(__file__).parent
pipe = open(os.environ["FINETUNE_EVENTS"], "w", buffering=1)
def tell(event, **content):
    pipe.write(json.dumps(dict(event=event, **content)) + "\\n")
def fail(cause):
    tell("failed", failure=dict(failure_class="user", cause=cause, message="m", cure="c"))
"""


@pytest.fixture
def supervise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Make a supervisor whose child is the given program."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    python, log = sys.executable, RunLog()

    def make(program: str, grace: float = 30) -> Supervisor:
        script = tmp_path / "child"
        script.write_text(PRELUDE.format(python=python) + program)
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        spec = TrainingSpec(algorithm="lora_sft", base_model="m", dataset="d", work_dir=str(tmp_path))
        log.open(tmp_path / "train.log")
        return Supervisor(spec, WorkDir(tmp_path), log, Stop().listen(), epochs=1, grace=grace)

    yield make
    log.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def signal_when(file: Path, number: int = signal.SIGTERM) -> threading.Thread:
    """Send this process a signal as soon as a file is there."""

    def send() -> None:
        while not file.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def cause_of(supervisor: Supervisor) -> str | None:
    """Return the cause of the failure, if there is one."""
    return supervisor.failure.cause if supervisor.failure else None


def test_facts_of_a_child_are_gathered_and_its_output_is_kept(supervise: Start, tmp_path: Path) -> None:
    child = supervise(
        "print('from a library')\n"
        "tell('report', metrics={'seconds_check': 1})\n"
        "tell('report', metrics={'seconds_training': 2}, model_uri='file:///m')\n"
    )
    child.run()
    assert child.failure is None
    assert child.facts["model_uri"] == "file:///m"
    assert {"seconds_check": 1, "seconds_training": 2}.items() <= child.facts["metrics"].items()
    assert "from a library" in (tmp_path / "train.log").read_text()


def test_the_time_of_all_gpus_is_counted_from_the_start_of_the_training(
    supervise: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Gpus", lambda: SimpleNamespace(count=8, memory_used=lambda: 5))
    child = supervise("time.sleep(1)\ntell('training', pid=os.getpid(), device='cuda')\ntime.sleep(1)\nos._exit(3)\n")
    child.run()
    assert 8 <= child.facts["metrics"]["gpu_seconds"] < 16


def test_nobody_waits_for_a_grandchild_that_holds_the_pipes(supervise: Start) -> None:
    child = supervise(
        "subprocess.Popen(['sleep', '20'], close_fds=False)\ntell('report', model_uri='file:///m')\nprint('end')\n"
    )
    started = time.monotonic()
    child.run()
    assert time.monotonic() - started < 8
    assert child.facts["model_uri"] == "file:///m"


def test_the_child_does_not_import_from_the_directory_that_the_task_was_started_in(supervise: Start) -> None:
    child = supervise("tell('report', versions={'safe': os.environ['PYTHONSAFEPATH']})\n")
    child.run()
    assert child.facts["versions"] == {"safe": "1"}


def test_copies_that_the_libraries_make_of_the_data_go_where_the_attempt_works(
    supervise: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    child = supervise("tell('report', versions={'cache': os.environ['HF_DATASETS_CACHE']})\n")
    child.run()
    assert child.facts["versions"] == {"cache": str(tmp_path / "data" / "cache")}


def test_what_two_children_report_adds_up_and_the_second_is_told_its_part(supervise: Start) -> None:
    child = supervise(
        "tell('report', metrics={sys.argv[3]: 1})\nassert sys.argv[-2:] == ['--work-dir', str(here)], sys.argv\n"
    )
    assert child.run("work")
    assert child.run("launch")
    assert {"work": 1, "launch": 1}.items() <= child.facts["metrics"].items()


def test_of_several_processes_the_one_counts_that_did_not_only_lose_another(supervise: Start) -> None:
    child = supervise("fail('peer_failed')\nfail('disk_full')\nfail('library_crash')\nsys.exit(1)\n")
    assert not child.run()
    assert cause_of(child) == "disk_full"


def test_half_a_line_of_a_killed_process_hides_no_other(supervise: Start) -> None:
    child = supervise("pipe.write('{\"event\": \"re\\n')\ntell('report', model_uri='file:///m')\n")
    child.run()
    assert child.facts["model_uri"] == "file:///m"


def test_process_1_of_a_container_buries_the_orphans_of_its_child(tmp_path: Path) -> None:
    left = "import os, subprocess, sys, time; subprocess.Popen(['sleep', '0.3']); os._exit(0)"
    (tmp_path / "child").write_text(
        f"#!{sys.executable}\nimport subprocess, sys, time\nfrom pathlib import Path\n"
        f"subprocess.run([sys.executable, '-c', {left!r}])\ntime.sleep(2)\n"
        "states = [p.read_text().rsplit(')', 1)[1].split()[0] for p in Path('/proc').glob('[0-9]*/stat')]\n"
        f"Path({str(tmp_path)!r}, 'states').write_text(' '.join(states))\n"
    )
    (tmp_path / "child").chmod(0o755)
    program = (
        "import sys; from pathlib import Path\n"
        "from airflow_provider_finetune.contract.spec import TrainingSpec\n"
        "from airflow_provider_finetune.runner.log import RunLog\n"
        "from airflow_provider_finetune.runner.stopping import Stop\n"
        "from airflow_provider_finetune.runner.supervisor import Supervisor\n"
        "from airflow_provider_finetune.runner.tries.workdir import WorkDir\n"
        f"here = Path({str(tmp_path)!r}); sys.executable = str(here / 'child')\n"
        "spec = TrainingSpec(algorithm='lora_sft', base_model='m', dataset='d', work_dir=str(here))\n"
        "child = Supervisor(spec, WorkDir(here), RunLog(), Stop().listen(), epochs=1, grace=30)\n"
        "sys.exit(0 if child.run() else 1)\n"
    )
    contained = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    ended = subprocess.run(contained, capture_output=True, text=True, check=False, timeout=60)
    if "Operation not permitted" in ended.stderr:
        pytest.skip(f"no right to make a process namespace: {ended.stderr}")
    assert ended.returncode == 0, ended
    assert "Z" not in (tmp_path / "states").read_text().split()


def test_an_end_without_a_word_is_told_by_its_status(supervise: Start) -> None:
    child = supervise("os._exit(7)\n")
    child.run()
    assert child.failure is not None
    assert (child.failure.cause, child.failure.failure_class) == ("library_crash", "infrastructure")
    assert "exit status 7" in child.failure.message


def test_an_end_without_a_word_is_told_by_what_was_printed(supervise: Start) -> None:
    child = supervise("print('Traceback (most recent call last):\\nSomeError: five is odd')\nos._exit(7)\n")
    child.run()
    assert child.failure is not None
    assert child.failure.cause == "library_crash"
    assert child.failure.message.endswith("; its last exception: SomeError: five is odd")


def test_an_end_without_a_word_is_that_of_the_memory_where_that_was_printed(supervise: Start, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("OSError: [Errno 28] No space left on device\n")  # of the try before
    out_of_memory = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
    child = supervise(f"print({out_of_memory!r})\nos._exit(7)\n")
    child.run()
    assert cause_of(child) == "gpu_out_of_memory"


def test_what_the_try_before_has_printed_is_no_reason(supervise: Start, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("OSError: [Errno 28] No space left on device\n")
    child = supervise("os._exit(7)\n")
    child.run()
    assert cause_of(child) == "library_crash"


def test_a_kill_by_the_kernel_for_memory_is_told_as_such(supervise: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(module, "_oom_kills", lambda: next(counts))
    child = supervise("os.kill(os.getpid(), signal.SIGKILL)\n")
    child.run()
    assert cause_of(child) == "out_of_memory"


def test_a_training_that_ended_well_is_not_failed_because_the_kernel_killed_somebody_else(
    supervise: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(module, "_oom_kills", lambda: next(counts))
    child = supervise("tell('report', model_uri='file:///m')\n")
    child.run()
    assert child.failure is None


def test_a_signal_reaches_the_child_and_is_told(supervise: Start, tmp_path: Path) -> None:
    child = supervise("(here / 'up').touch()\ntime.sleep(60)\n")
    sender = signal_when(tmp_path / "up")
    child.run()
    sender.join()
    assert child.failure is not None
    assert (child.failure.failure_class, child.failure.cause) == ("preempted", "terminated")
    assert "SIGTERM before the first step" in child.failure.message


def test_a_signal_after_the_model_is_in_place_does_not_unmake_it(supervise: Start, tmp_path: Path) -> None:
    child = supervise(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "tell('report', model_uri='file:///m')\n(here / 'up').touch()\ntime.sleep(60)\n"
    )
    sender = signal_when(tmp_path / "up")
    child.run()
    sender.join()
    assert child.failure is None


def test_what_the_child_knew_to_be_wrong_is_told_also_when_a_signal_came(supervise: Start, tmp_path: Path) -> None:
    child = supervise("fail('dataset_empty')\n(here / 'up').touch()\ntime.sleep(60)\n")
    sender = signal_when(tmp_path / "up")
    child.run()
    sender.join()
    assert cause_of(child) == "dataset_empty"


def test_an_interrupt_that_the_child_takes_for_a_crash_is_told_as_an_interrupt(
    supervise: Start, tmp_path: Path
) -> None:
    child = supervise(
        "def crash(*_):\n    fail('library_crash')\n    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, crash)\n(here / 'up').touch()\ntime.sleep(60)\n"
    )
    sender = signal_when(tmp_path / "up", signal.SIGINT)
    child.run()
    sender.join()
    assert child.failure is not None
    assert (child.failure.cause, "SIGINT" in child.failure.message) == ("terminated", True)


def test_a_child_that_does_not_heed_the_signal_is_killed(supervise: Start, tmp_path: Path) -> None:
    child = supervise("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(here / 'up').touch()\ntime.sleep(60)\n", grace=1)
    sender = signal_when(tmp_path / "up")
    started = time.monotonic()
    child.run()
    sender.join()
    assert time.monotonic() - started < 20
    assert cause_of(child) == "terminated"


def test_a_fault_while_the_child_is_followed_ends_the_child(supervise: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    child = supervise("tell('training', pid=os.getpid())\ntime.sleep(60)\n")

    def broken() -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(child._follower, "poll", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        child.run()
    assert child._child is not None
    assert child._child.wait(timeout=10) == -signal.SIGKILL
