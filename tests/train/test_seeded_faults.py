"""A data set with twenty-five faults, each at a line that chance has chosen: the check names every one of them.

* rows that cannot be used are left out, each named by its line under its reason
* rows that can be used and are worth a look are named by their lines
* a run that may not leave out so many ends before its weights are read, with the faults in the outcome
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import RunRunner, chat
from tests.train.tiny_model import CHATML

Spec = dict[str, Any]

ROWS = 200

ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)


def turns(*said: tuple[str, Any]) -> bytes:
    """One chat row of pairs of role and content."""
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in said]}).encode()


def good(number: int) -> bytes:
    """The row of this number without a fault."""
    return json.dumps({"id": f"row-{number}", **chat(f"What is {number}?", f"It is {number}.")}).encode()


QUESTION = ("user", "Why?")

DROPPED: dict[str, tuple[bytes, str]] = {
    "cut off": (good(0)[:40], "it is not JSON (Unterminated string starting at)"),
    "Python's quotes": (
        b"{'messages': []}",
        "it is not JSON (Expecting property name enclosed in double quotes)",
    ),
    "two rows in a line": (good(0) + good(1), "it is not JSON (Extra data)"),
    "nested too deep": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is not JSON that can be read"),
    "endless number": (b'{"id": ' + b"9" * 5000 + b"," + turns(QUESTION)[1:], "it is not JSON that can be read"),
    "Latin-1": ('{"messages": "Ä"}'.encode("latin-1"), "it is not UTF-8"),
    "half a character": (turns(QUESTION, ("assistant", "\ud83d")), "its text has half of a character"),
    "array": (b"[" + good(0) + b"]", "it has no list 'messages'"),
    "no column": (b"{}", "it has no list 'messages'"),
    "no messages": (b'{"messages": []}', "it has no list 'messages'"),
    "messages as a text": (b'{"messages": "Why?"}', "it has no list 'messages'"),
    "message without a role": (b'{"messages": [{"content": "Why?"}]}', "a message has no 'role'"),
    "message as a text": (b'{"messages": ["Why?"]}', "a message has no 'role'"),
    "no content": (turns(QUESTION, ("assistant", None)), "a message has no text in 'content'"),
    "content as a number": (turns(QUESTION, ("assistant", 7)), "a message has no text in 'content'"),
    "role misspelt": (turns(QUESTION, ("Assistant", "So.")), "it has no assistant message with text"),
    "nobody answers": (turns(QUESTION), "it has no assistant message with text"),
    "empty answer": (turns(QUESTION, ("assistant", " ")), "it has no assistant message with text"),
    "another form": (
        b'{"instruction": "Why?", "output": "So."}',
        "it has the form 'alpaca', and the data set the form 'messages'",
    ),
    "picture": (
        turns(("user", [{"type": "image_url", "image_url": "a.png"}]), ("assistant", "A cat.")),
        "a message has a part that is no text",
    ),
    "too long": (turns(QUESTION, ("assistant", "so " * 100)), "it is longer than training_max_seq_len=128"),
    "roles that do not alternate": (turns(QUESTION, QUESTION, ("assistant", "So.")), "roles must alternate"),
}
"""The faults for which a row is left out, with what is said of them."""

ONLY_TOKENS_TELL = {"too long", "roles that do not alternate"}

DOUBTFUL: dict[str, tuple[bytes, str, str]] = {
    "repeated row": (good(1), "repeated_lines", "row repeats an earlier one"),
    "repeated id": (
        json.dumps({"id": "row-1", **chat("Another?", "Another.")}).encode(),
        "repeated_ids_lines",
        "ids are used twice",
    ),
    "empty answer before another": (
        turns(QUESTION, ("assistant", ""), QUESTION, ("assistant", "So.")),
        "empty_answers_lines",
        "answer is empty",
    ),
}
"""The faults of rows that are used, where the outcome names them, and what is said of them."""


@pytest.fixture(params=[1, 2])
def lines(request: pytest.FixtureRequest, dataset: Path) -> dict[str, str]:
    """Sow the faults into the data set; return the line of each. The first row is that which others repeat."""
    where = random.Random(request.param).sample(range(2, ROWS + 1), len(DROPPED) + len(DOUBTFUL))
    sown = dict(zip((*DROPPED, *DOUBTFUL), where, strict=True))
    rows = {number: good(number) for number in range(1, ROWS + 1)}
    rows |= {sown[name]: fault[0] for name, fault in (DROPPED | DOUBTFUL).items()}
    dataset.write_bytes(b"\n".join(rows.values()))
    return {name: str(line) for name, line in sown.items()}


@pytest.fixture
def strict_spec(spec: Spec, tiny_model: Path, tmp_path: Path) -> Spec:
    """Full fine-tuning of a model that refuses roles which do not alternate, and whose weights nobody can read."""
    model = tmp_path / "strict-model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text(ALTERNATING)
    weights = model / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    return {**spec, "algorithm": "sft", "base_model": str(model)}


def named(text: str, what: str) -> set[str]:
    """Return the lines that ``text`` names in the brackets behind ``what``."""
    return {
        line for found in re.findall(re.escape(what) + r".*?\(line ([\d, ]+)\)", text) for line in found.split(", ")
    }


def test_a_check_names_every_fault_by_its_line(run_runner: RunRunner, strict_spec: Spec, lines: dict[str, str]) -> None:
    ended = run_runner({**strict_spec, "max_dropped": 0.2}, "check")
    assert ended.outcome.status == "checked", ended.output
    found = ended.full.dataset
    for name, (_, reason) in DROPPED.items():
        (whole,) = (key for key in found["dropped_lines"] if reason in key)
        assert lines[name] in found["dropped_lines"][whole], name
        assert lines[name] in named(ended.output, reason), name
    for name, (_, key, said) in DOUBTFUL.items():
        assert lines[name] in found[key], name
        assert lines[name] in named(ended.output, said), name
    blamed = sorted(line for of_reason in found["dropped_lines"].values() for line in of_reason)
    assert blamed == sorted(lines[name] for name in DROPPED), "and no row that is right"
    assert found["rows_used"] == ROWS - len(DROPPED)


@pytest.mark.parametrize("lines", [3], indirect=True)
def test_a_run_names_them_before_it_reads_weights_and_trains_nothing(
    run_runner: RunRunner, strict_spec: Spec, lines: dict[str, str]
) -> None:
    ended = run_runner(strict_spec)
    failure = ended.outcome.failure
    assert failure is not None
    assert (failure.failure_class, failure.cause) == ("user", "too_many_rows_dropped")
    for name, (_, reason) in DROPPED.items():
        assert name in ONLY_TOKENS_TELL or lines[name] in named(failure.message, reason), name
    for name, (_, _, said) in DOUBTFUL.items():
        assert lines[name] in named(ended.output, said), name
    assert "seconds_training" not in ended.full.metrics
    assert "step 1/" not in ended.output
    assert ended.outcome.model_uri is None


def test_of_a_fault_that_many_rows_have_the_outcome_of_a_refused_run_names_twenty(
    run_runner: RunRunner, spec: Spec, dataset: Path
) -> None:
    dataset.write_bytes(b"\n".join([*map(good, range(1, 101)), *[b"{"] * 30]))
    ended = run_runner(spec)
    assert ended.outcome.failure is not None
    assert ended.outcome.failure.cause == "too_many_rows_dropped"
    ((reason, count),) = ended.full.dataset["rows_dropped"].items()
    assert (count, ended.full.dataset["rows"]) == (30, 130)
    assert ended.full.dataset["dropped_lines"][reason] == [str(line) for line in range(101, 121)]
