"""What the runner prints is read line by line: for people, for programs, and what of it may stand in an outcome."""

from __future__ import annotations

import logging

from airflow_provider_finetune.launchers.transcript import Transcript


def test_samples_of_the_data_go_into_the_task_log_and_into_no_outcome():
    transcript = Transcript()
    said = [transcript.take(line) for line in ("data: 3 rows", "| a secret", "| error: false alarm", "| ", "error: no")]
    assert said[1:3] == [(logging.INFO, "| a secret"), (logging.INFO, "| error: false alarm")]
    assert list(transcript.last_lines) == ["data: 3 rows", "error: no"]
