"""What the check says of data and mask, in the log and in the outcome, and what of it ends the run.

* one readable block: rows, what is left out and why, doubts, lengths, mask
* of a sample: what is expected of the whole is called "about", and judged by the sample's share
* what the chat template makes of the rows; plain text
* text of the data goes into the task log alone
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner import report
from airflow_provider_finetune.runner.data.counts import Dropped, Found
from airflow_provider_finetune.runner.data.rows import Row, Structure
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.masking import Encoding, Tokenised
from airflow_provider_finetune.runner.report import Report


class Told(Events):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.facts: dict[str, Any] = {}

    def say(self, message: str) -> None:
        """Keep a line."""
        self.lines.append(message)

    def warn(self, message: str) -> None:
        """Keep a warning."""
        self.lines.append(f"warning: {message}")

    def show(self, text: str) -> None:
        """Keep text of the data."""
        self.lines.append(f"| {text}")

    def report(self, **facts: Any) -> None:
        """Keep what goes into the outcome."""
        self.facts.update(facts)


def data(rows: int = 12_000, **found: Any) -> Structure:
    """What one pass over a file has found."""
    found = {"form": "messages", "sha256": "1a2b3c4d5e6f" + "0" * 52, **found}
    return Structure("/data/train.jsonl", found.pop("format", "jsonl"), Path("rows.jsonl"), rows=rows, **found)


def tokens(rows: int, length: int = 100, **found: Any) -> Tokenised:
    """What tokenising has found: rows of one length, of which six in ten tokens are trained."""
    lengths = array("I", [length] * rows)
    return Tokenised(lengths, trained_tokens=rows * length * 6 // 10, ends=Counter({"<|im_end|>": rows}), **found)


def dropped(**reasons: int) -> Dropped:
    """Rows that are left out, by reason, from line 1 on."""
    found = Dropped()
    for reason, count in reasons.items():
        for line in range(1, count + 1):
            found.add(str(line), reason)
    return found


def told(found: Report | Structure, max_dropped: float = 0.05) -> list[str]:
    """Return all lines that are said."""
    events = Told()
    if isinstance(found, Structure):
        report.tell_data(found, max_dropped, events)
    else:
        report.tell_tokens(found, 512, max_dropped, events)
        report.tell_mask(found, events)
    return events.lines


def test_data_without_a_fault_takes_one_line() -> None:
    assert told(data()) == ["data: /data/train.jsonl, JSONL with chat messages, 12,000 rows (sha256 1a2b3c4d…)"]
    assert told(data(1, form="alpaca", format="parquet"))[0].startswith(
        "data: /data/train.jsonl, parquet with Alpaca instructions, 1 row "
    )


def test_what_is_left_out_and_what_is_doubtful_is_named_by_line() -> None:
    found = data(
        dropped=dropped(broken=40, long=1),
        repeated=Found(12, [str(line) for line in range(1, 13)]),
        repeated_ids=Found(1, ["b.jsonl:7"]),
        empty_answers=Found(2, ["5", "8"]),
        columns_left_out=("id", "source"),
    )
    assert told(found)[1:] == [
        "warning: data: 12 rows repeat an earlier one (line 1, 2, 3, 4, 5, …), 1 id is used twice (b.jsonl:7), "
        "2 answers are empty (line 5, 8)",
        "data: columns not used: id, source",
        "warning: data: 11,959 rows can be used; 41 are left out: 40 rows: broken (line 1, 2, 3, 4, 5, …); "
        "1 row: long (line 1)",
    ]


def test_more_rows_left_out_than_allowed_end_the_run() -> None:
    with pytest.raises(UserError, match=r"6 of 100 rows \(6\.0%\) cannot be used, more than max_dropped=0\.05") as at:
        told(data(100, dropped=dropped(broken=6)))
    assert at.value.failure.cause == "too_many_rows_dropped"
    told(data(100, dropped=dropped(broken=5)))


def test_lengths_and_mask_take_two_lines() -> None:
    assert told(Report(data(200), tokens(200))) == [
        "tokens: 20,000 in 200 rows (median 100, 95 % 100, longest 100)",
        "mask: 60 % of the tokens are trained, those of the assistant, the end of its turn (<|im_end|>) included",
    ]


def test_of_a_sample_the_whole_is_estimated() -> None:
    found = Report(
        data(31_000, dropped=dropped(broken=1000)),
        tokens(1980, 106, dropped=dropped(odd=20), cut=Found(3, ["4", "8", "9"])),
    )
    lines = told(found)
    assert lines[0] == "tokens: about 3.1 million (2,000 rows drawn evenly: median 106, 95 % 106, longest 106)"
    assert "warning: 3 rows of 2,000 drawn evenly are cut to training_max_seq_len=512 (line 4, 8, 9)" in lines
    assert "warning: not trained on, of 2,000 drawn evenly: 20 rows: odd (line 1, 2, 3, 4, 5, …)" in lines
    assert (found.rows, found.dropped) == (29_700, 1300)


def test_a_sample_is_judged_by_its_share_together_with_what_all_rows_have_shown() -> None:
    found = Report(data(30_000, dropped=dropped(broken=600)), tokens(1800, dropped=dropped(odd=200)))
    said = r"about 3,540 of 30,000 rows \(11\.8%\) cannot be used, judged by 2,000 rows drawn evenly, more than"
    with pytest.raises(UserError, match=said):
        told(found)
    assert told(found, 0.1), "so near the limit all rows decide"
    whole = Report(data(2_000, dropped=dropped(broken=40)), tokens(1764, dropped=dropped(odd=196)))
    with pytest.raises(UserError, match=r"236 of 2,000 rows \(11\.8%\)"):
        told(whole, 0.1)


def test_rows_that_are_cut_are_told_with_their_true_length() -> None:
    found = tokens(200, cut=Found(1, ["4"]), longest_uncut=4011)
    assert (
        told(Report(data(200), found))[0] == "tokens: 20,000 in 200 rows (median 100, 95 % 100, longest 100 of 4,011)"
    )
    assert found.summary()["cut_lines"] == ["4"]


def test_nothing_to_train_on_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError, match=r"no row to train on: 3 rows: odd \(line 1, 2, 3\)") as raised:
        told(Report(data(3), Tokenised(dropped=dropped(odd=3))), 1)
    assert raised.value.failure.cause == "dataset_unusable"


def test_what_the_template_makes_of_the_rows_is_said() -> None:
    some = Found(1, ["4"])
    found = tokens(10, endless=Found(10, ["1"]), partly=some, unprompted=some, spanning=some)
    found.ends.clear()
    lines = told(Report(data(10), found))[1:]
    assert lines[0] == "mask: 60 % of the tokens are trained, those of the assistant"
    assert "10 of 10 rows end without a special token, so the model does not learn to end its turn" in lines[1]
    assert "1 of 10 rows are trained without their earlier answers" in lines[2]
    assert "answers that begin otherwise than the chat template asks for one" in lines[3]
    assert "a token that begins in the prompt and ends in the answer" in lines[4]
    assert all(line.endswith("(line 4)") for line in lines[2:])


def test_a_tokenizer_that_names_no_end_is_warned_of() -> None:
    assert "names no token that ends a text" in told(Report(data(10), tokens(10, names_an_end=False)))[2]


def test_plain_text_is_trained_whole() -> None:
    assert told(Report(data(10, form="text"), tokens(10, loss_on="all")))[1] == (
        "mask: all tokens are trained, the end of each text (<|im_end|>) included"
    )


def test_the_outcome_has_it_all_and_is_json() -> None:
    structure = data(
        100,
        dropped=dropped(broken=2),
        repeated=Found(1, ["9"]),
        columns_left_out=("id",),
        identity={"revision": "1a2b3c4"},
    )
    found = Report(structure, tokens(49, dropped=dropped(odd=1)))
    summary = found.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["sample"] == 50
    assert (summary["rows"], summary["rows_used"], summary["tokens"]) == (100, 96, 9604)
    assert summary["rows_dropped"] == {"broken": 2, "odd": 1}
    assert summary["dropped_lines"] == {"broken": ["1", "2"], "odd": ["1"]}
    assert (summary["rows_repeated"], summary["repeated_lines"]) == (1, ["9"])
    assert summary["end_of_turn"] == "<|im_end|>"
    assert summary["identity"] == {"revision": "1a2b3c4"}
    assert Report(data(10), tokens(10)).summary()["sample"] == "all"
    many = {f"reason {number}": 1 for number in range(30)}
    both = Report(data(100, dropped=dropped(**many)), tokens(40, dropped=dropped(**many, odd=1))).summary()
    assert sum(both["rows_dropped"].values()) == 61, "also where both have more reasons than are told apart"
    whole = Report(data(10), tokens(10)).summary(trained_whole=True)
    assert (whole["loss_on"], whole["trained_share"], whole["trained_tokens"]) == ("all", 1.0, None)


def test_a_long_reading_says_how_far_it_is() -> None:
    events = Told()
    rows = [Row("1", [], None)] * 3
    assert list(report.followed(rows, 3000, events, seconds=0)) == rows
    assert events.lines[-1] == "tokens: 2 of 3,000 rows read"
    assert list(report.followed(rows, 3, Told())) == rows


def test_rows_that_the_template_refuses_are_no_samples() -> None:
    events = Told()
    report.show_samples(5, [Row("1", [], None)], None, Encoding(10), events)
    assert events.lines == []
