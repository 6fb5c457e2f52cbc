"""What the lines of the runner's output mean."""

from __future__ import annotations

import json
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_finetune.contract.outcome import DATA_MARK, OUTCOME_MARK, PROGRESS_MARK, Outcome

_LEVELS = {"warning: ": logging.WARNING, "error: ": logging.ERROR}
_KEPT_LINES = 20


@dataclass
class Transcript:
    """What the runner has said so far.

    * ``outcome``: from its last outcome line; ``progress``: from its last progress line
    * ``last_lines``: the readable lines before its end, without those of the data
    """

    outcome: Outcome | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))

    def take(self, line: str) -> tuple[int, str] | None:
        """Take in one line and return level and text to log, or ``None`` for a line that is meant for us.

        :param line: one line of the runner's output.
        """
        try:
            if line.startswith(PROGRESS_MARK):
                self.progress = json.loads(line.removeprefix(PROGRESS_MARK))
                return None
            if line.startswith(OUTCOME_MARK):
                self.outcome = Outcome.from_json(line.removeprefix(OUTCOME_MARK))
                return None
        except ValueError:
            return logging.WARNING, line
        if not line.startswith(DATA_MARK):
            self.last_lines.append(line)
        for prefix, level in _LEVELS.items():
            if line.startswith(prefix):
                return level, line.removeprefix(prefix)
        return logging.INFO, line
