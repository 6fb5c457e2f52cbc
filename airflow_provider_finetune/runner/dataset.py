"""Chat rows from JSONL: reading, checking the structure of every row, and the fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.storage import local_path

Message = dict[str, Any]

LINES_KEPT = 20
"""How many line numbers of a reason are kept: enough to find the pattern, small enough for the outcome."""


@dataclass
class Dropped:
    """Rows that are not trained on, by reason."""

    rows: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def add(self, line: int, reason: str) -> None:
        """Count one row."""
        self.rows[reason] = self.rows.get(reason, 0) + 1
        lines = self.lines.setdefault(reason, [])
        if len(lines) < LINES_KEPT:
            lines.append(line)

    def absorb(self, others: Dropped) -> None:
        """Add rows that were dropped for other reasons."""
        self.rows |= others.rows
        self.lines |= others.lines

    @property
    def total(self) -> int:
        """How many rows are dropped."""
        return sum(self.rows.values())

    def describe(self) -> str:
        """Return one sentence part for each reason, with line numbers."""
        return "; ".join(
            f"{count} {'row' if count == 1 else 'rows'}: {reason} (line {_numbers(self.lines[reason], count)})"
            for reason, count in sorted(self.rows.items(), key=lambda item: -item[1])
        )


def _numbers(lines: list[int], count: int) -> str:
    shown = ", ".join(str(line) for line in lines[:5])
    return shown if count <= 5 else f"{shown}, …"


@dataclass
class Structure:
    """What one pass over the file has found."""

    path: Path
    rows: int = 0
    dropped: Dropped = field(default_factory=Dropped)
    sha256: str = ""
    stamp: tuple[int, int] = (0, 0)
    """Size and time of the last change, as they were before the first row was read."""

    @property
    def usable(self) -> int:
        """How many rows have the right form."""
        return self.rows - self.dropped.total


def locate(dataset: str, argument: str = "dataset") -> Path:
    """Return the JSONL file that ``dataset`` names.

    :param dataset: path or ``file://`` URI.
    :param argument: the operator's argument, for the message.
    :raises UserError: missing, not readable, a directory, or not JSONL.
    """
    path = local_path(dataset, argument)
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        raise UserError(
            "dataset_missing",
            f"{argument}={dataset!r}: {path} does not exist",
            "Check the path; a task that makes it must run before this one, and write to the same disk or claim",
        ) from error
    except IsADirectoryError:
        pass
    except OSError as error:
        raise UserError(
            "dataset_unreadable",
            f"{argument}={dataset!r}: {path} cannot be read: {error.strerror or error}",
            "Give the user that runs the training the right to read it",
        ) from error
    if path.is_dir() or path.suffix.lower() != ".jsonl":
        raise UserError(
            "dataset_format",
            f"{argument}={dataset!r}: this version reads one .jsonl file with chat rows",
            'Write a line {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]} '
            "for each row",
        )
    return path


def check_structure(path: Path) -> Structure:
    """Read every row once, without any tokenizer.

    :param path: JSONL file.
    :raises UserError: there is no row, or none with the right form.
    """
    found = Structure(path, stamp=_stamp(path))
    digest = hashlib.sha256()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            digest.update(line)
            if not line.strip():
                continue
            found.rows += 1
            messages = _messages(line)
            if isinstance(messages, str):
                found.dropped.add(number, messages)
    found.sha256 = digest.hexdigest()
    if not found.rows:
        raise UserError("dataset_empty", f"The dataset {path} has no row", "Check the task that writes it")
    if not found.usable:
        raise UserError(
            "dataset_unusable",
            f"The dataset {path} has no usable row among {found.rows}: {found.dropped.describe()}",
            "Mend the rows named",
        )
    return found


def chat_rows(path: Path) -> Iterator[tuple[int, list[Message]]]:
    """Yield line number and messages of each row with the right form."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            messages = _messages(line)
            if not isinstance(messages, str):
                yield number, messages


def ensure_unchanged(structure: Structure) -> None:
    """Make sure that what was read the second time is what was checked the first time.

    :param structure: what :func:`check_structure` has found.
    :raises RunFailed: somebody writes to the file.
    """
    if _stamp(structure.path) != structure.stamp:
        raise RunFailed(
            "infrastructure",
            "dataset_changed",
            f"The dataset {structure.path} was changed while it was read",
            "Let this task wait for the one that writes it, or write it under another name and rename it when it is "
            "whole",
        )


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def ensure_few_dropped(rows: int, dropped: Dropped, max_dropped: float) -> None:
    """Hold the share of dropped rows against ``max_dropped``.

    :param rows: how many rows the data has.
    :param dropped: which of them are dropped.
    :param max_dropped: share, 0 to 1.
    :raises UserError: more are dropped.
    """
    if dropped.total > max_dropped * rows:
        raise UserError(
            "too_many_rows_dropped",
            f"{dropped.total} of {rows} rows ({dropped.total / rows:.1%}) cannot be used, more than "
            f"max_dropped={max_dropped:g} allows: {dropped.describe()}",
            "Mend the rows named, or raise max_dropped if they may be left out",
        )


def _messages(line: bytes) -> list[Message] | str:
    """Return a row's messages, or what is wrong with it."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except json.JSONDecodeError as error:
        return f"it is not JSON ({error.msg})"
    except (ValueError, RecursionError):
        # Python reads neither numbers of thousands of digits nor lists in lists a thousand deep.
        return "it is not JSON that can be read"
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "it has no list 'messages'"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return "a message has no 'role'"
        if not isinstance(message.get("content"), str):
            return "a message has no text in 'content'"
        if not _is_text(message["role"] + message["content"]):
            return "a message has half of a character (a lone surrogate such as \\ud83d)"
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        return "it has no assistant message with text"
    return messages


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
