"""A runner process and its group, from start to end, with real processes and without Airflow.

Aspects: output; exit status; asking gently, then killing; leftovers of the group; an exception in the waiting code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.process import RunnerProcess

CHILD = "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"


def process(code: str, **kwargs: Any) -> RunnerProcess:
    return RunnerProcess([sys.executable, "-u", "-c", code], env=dict(os.environ), **kwargs)


def has_ended(pid: int) -> bool:
    """Tell whether a process that is not our child is gone; its new parent may reap it a moment later."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_each_line_arrives_whole_and_while_the_process_runs():
    lines: list[tuple[str, float]] = []
    code = "import sys, time; sys.stdout.write('one\\ntw'); time.sleep(1); print('o'); sys.stderr.write('äh')"
    status = process(code).run(lambda line: lines.append((line, time.monotonic())))
    assert status == 0
    assert [line for line, _ in lines] == ["one", "two", "äh"]
    assert lines[1][1] - lines[0][1] > 0.5


def test_status_and_signal_of_the_end_are_told():
    assert process("raise SystemExit(3)").run(print) == 3
    assert process("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").run(print) == -signal.SIGKILL


def test_a_program_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError):
        RunnerProcess(["/no/such/program"], env={}).run(print)


def test_a_runner_that_is_asked_to_end_may_say_its_last_words():
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('x' * 500_000), print('saved'), sys.exit(0)))\n"
        "print('ready'); time.sleep(60)"
    )
    runner, lines = process(code), []

    def take(line: str) -> None:
        lines.append(line)
        if line == "ready":
            runner.terminate()
            runner.terminate()

    assert runner.run(take) == 0
    assert lines[-1] == "saved"


def test_a_runner_that_does_not_listen_is_killed_with_its_children_after_the_grace_period():
    code = (
        f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{CHILD}print(child.pid)\ntime.sleep(60)"
    )
    runner, pids = process(code, grace=0.5), []

    def take(line: str) -> None:
        pids.append(int(line))
        runner.terminate()

    begin = time.monotonic()
    assert runner.run(take) == -signal.SIGKILL
    assert 0.5 <= time.monotonic() - begin < 10
    assert has_ended(pids[0])


def test_what_a_runner_leaves_behind_is_ended_and_does_not_hold_up_the_task():
    pids: list[str] = []
    begin = time.monotonic()
    assert process(f"{CHILD}print(child.pid)").run(pids.append) == 0
    assert time.monotonic() - begin < 10
    assert has_ended(int(pids[0]))


def test_a_process_that_left_the_group_cannot_hold_up_the_task_by_the_pipe():
    code = CHILD.replace("time.sleep(60)'])", "time.sleep(5)'], start_new_session=True)")
    begin = time.monotonic()
    assert process(code).run(print) == 0
    assert time.monotonic() - begin < 4


def test_an_exception_in_the_waiting_code_ends_the_group():
    pids: list[int] = []

    def take(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process(f"import time\n{CHILD}print(child.pid); time.sleep(60)").run(take)
    assert has_ended(pids[0])


def test_a_process_over_its_time_is_asked_to_end():
    runner = process("import time; time.sleep(60)")
    assert runner.run(print, timeout=0.5) == -signal.SIGTERM
    assert runner.timed_out


def test_a_request_to_end_before_the_start_is_not_forgotten():
    runner = process("import time; time.sleep(60)")
    runner.terminate()
    assert runner.run(print) == -signal.SIGTERM


def test_a_request_to_end_may_come_from_another_thread():
    runner = process("import time; time.sleep(60)")
    timer = threading.Timer(0.5, runner.terminate)
    timer.start()
    assert runner.run(print) == -signal.SIGTERM
    timer.join()
