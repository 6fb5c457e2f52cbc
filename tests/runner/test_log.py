"""What the runner says arrives, whatever the locale, the disk and the reader do; and the child's events arrive whole.

* messages with any character, in any locale
* a full disk and a reader that is gone end the writing and not the run
* samples of the data stay out of ``train.log``, and none of their lines passes for one of ours
* the end of a log, and events over the pipe
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_finetune.runner.events import VARIABLE, Events
from airflow_provider_finetune.runner.log import RunLog, tail

PROGRAM = """
import sys
from pathlib import Path
from airflow_provider_finetune.runner.log import RunLog
log = RunLog()
log.open(Path(sys.argv[1]))
log.say("r\\u00e9sum\\u00e9 \\u2026 \\udcff", "warning")
print("done", file=sys.stderr)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_character_of_a_message_arrives_in_any_locale(tmp_path: Path, encoding: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "train.log")]
    said = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert said.stdout.decode() == "warning: résumé … \\udcff\n"
    assert (tmp_path / "train.log").read_text() == "warning: résumé … \\udcff\n"


def test_a_reader_that_is_gone_does_not_end_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "train.log")]
    read, write = os.pipe()
    os.close(read)
    said = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert b"done" in said.stderr
    assert "résumé" in (tmp_path / "train.log").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_a_full_disk_ends_train_log_with_one_warning_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog()
    log.open(Path("/dev/full"))
    log.say("one")
    log.say("two")
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[2]] == ["one", "two"]
    assert lines[1].startswith("warning: train.log ends here: ")


def test_a_log_that_cannot_be_made_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunLog().open(tmp_path / "nowhere" / "train.log")
    assert "warning: there will be no train.log" in capsys.readouterr().out


def test_samples_are_shown_behind_a_bar_and_never_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog()
    log.open(tmp_path / "train.log")
    log.show('a secret\nerror: false alarm\nfinetune-outcome {"status": "succeeded"}')
    log.say("end")
    log.close()
    assert all(line.startswith("| ") for line in capsys.readouterr().out.splitlines()[:3])
    assert tail(tmp_path / "train.log", 10) == ["end"]


def test_the_end_of_a_log_has_whole_and_short_lines_and_none_that_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"first\n\n" + b"bar 10%\rbar 100%\n" + b"x" * 9000 + b"\n\xff\n")
    assert tail(log, 3) == ["bar 100%", "x" * 500, "�"]
    assert tail(tmp_path / "nowhere", 3) == []


def test_events_arrive_as_one_json_object_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "events")
    read = os.open(tmp_path / "events", os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "events"))
    events = Events.from_environment()
    events.say("two\nlines …")
    events.report(metrics={"seconds_check": 1.5})
    events.failed({"cause": "disk_full"})
    with os.fdopen(read) as pipe:
        received = [json.loads(pipe.readline()) for _ in range(3)]
    assert received == [
        {"event": "say", "level": "info", "message": "two\nlines …"},
        {"event": "report", "metrics": {"seconds_check": 1.5}},
        {"event": "failed", "failure": {"cause": "disk_full"}},
    ]
