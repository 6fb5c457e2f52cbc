"""What the check has found out about data and mask: a few lines for people, the whole for the outcome, and the verdict.

Lengths and mask are known of all rows, or of a sample drawn evenly; what is only estimated is called "about".
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from airflow_provider_finetune.runner import masking
from airflow_provider_finetune.runner.data.counts import Dropped, Found
from airflow_provider_finetune.runner.data.rows import Row, Structure
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.masking import Encoding, Tokenised

SAMPLE = 2000
"""Rows, drawn evenly, that lengths and mask are known of before all are tokenised."""

_FORMATS = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "parquet": "parquet", "table": "a table"}
_FORMS = {
    "messages": "chat messages",
    "sharegpt": "ShareGPT conversations",
    "alpaca": "Alpaca instructions",
    "prompt_completion": "prompts and completions",
    "text": "plain text",
    "tokens": "tokenised rows",
}


@dataclass(frozen=True)
class Report:
    """Data and mask together.

    * ``structure``: of all rows
    * ``tokenised``: of all usable rows, or of a sample
    """

    structure: Structure
    tokenised: Tokenised

    @property
    def sampled(self) -> bool:
        """Whether only some of the usable rows were tokenised."""
        return self.tokenised.seen < self.structure.usable

    @property
    def rows(self) -> int:
        """Rows that are trained on; of a sample the number to expect."""
        return self._of_all(self.tokenised.rows)

    @property
    def dropped(self) -> int:
        """Rows that are not trained on; of a sample the number to expect."""
        return self.structure.rows - self.rows

    @property
    def tokens(self) -> int:
        """Tokens of one epoch; of a sample the number to expect."""
        return self._of_all(self.tokenised.tokens)

    @property
    def reasons(self) -> Dropped:
        """Why rows are not trained on, whether data or tokens tell."""
        joined = Dropped()
        for found in (self.structure.dropped, self.tokenised.dropped):
            joined.absorb(found)
        return joined

    def _of_all(self, count: int) -> int:
        return round(count * self.structure.usable / max(self.tokenised.seen, 1))

    def summary(self, *, trained_whole: bool = False) -> dict[str, Any]:
        """Return ``Outcome.dataset``.

        With a sample, ``rows_used`` and ``tokens`` are estimates for the whole, the reasons that only tokens tell are
        counted in the sample, and so are ``rows_cut`` and its like.

        :param trained_whole: all tokens are trained, in the library's own way of chat rows.
        """
        data, tokenised = self.structure, self.tokenised
        return {
            **data.summary(),
            "rows_used": self.rows,
            "rows_dropped": self.reasons.rows,
            "dropped_lines": self.reasons.lines,
            "sample": tokenised.seen if self.sampled else "all",
            **tokenised.summary(),
            "tokens": self.tokens,
            "trained_tokens": self._of_all(tokenised.trained_tokens),
            **({"loss_on": "all", "trained_share": 1.0, "trained_tokens": None} if trained_whole else {}),
        }


def tell_data(data: Structure, max_dropped: float, events: Events) -> None:
    """Say what one pass over all rows has found, the doubts as well where the run ends here.

    :param data: what it has found.
    :param max_dropped: share of rows that may be left out, 0 to 1.
    :param events: takes the lines.
    :raises UserError: more are left out.
    """
    form = _FORMS.get(data.form, data.form)
    events.say(
        f"data: {data.name}, {_FORMATS.get(data.format, data.format)} with {form}, {_counted(data.rows, 'row')} "
        f"(sha256 {data.sha256[:8]}…)"
    )
    doubts = [
        _doubt(data.repeated, "row repeats an earlier one", "rows repeat an earlier one"),
        _doubt(data.repeated_ids, "id is used twice", "ids are used twice"),
        _doubt(data.empty_answers, "answer is empty", "answers are empty"),
    ]
    if any(doubts):
        events.warn("data: " + ", ".join(filter(None, doubts)))
    if data.columns_left_out:
        events.say(f"data: columns not used: {', '.join(data.columns_left_out)}")
    if data.dropped.total:
        if data.dropped.total > max_dropped * data.rows:
            raise _too_many(data.dropped.total, data.rows, data.dropped, max_dropped, "")
        are = "is" if data.dropped.total == 1 else "are"
        events.warn(
            f"data: {_counted(data.usable, 'row')} can be used; {data.dropped.total:,} {are} left out: "
            f"{data.dropped.describe()}"
        )


def tell_tokens(report: Report, max_seq_len: int, max_dropped: float, events: Events) -> None:
    """Say how long rows are, and which are dropped and cut.

    :param report: of a sample, or of all rows.
    :param max_seq_len: most tokens of a row.
    :param max_dropped: share of rows that may be left out for whatever reason, 0 to 1.
    :param events: takes the lines.
    :raises UserError: no row is left, or more are left out; of a sample its share counts.
    """
    tokenised, data = report.tokenised, report.structure
    if not tokenised.rows:
        among = f" among {_counted(tokenised.seen, 'row')} drawn evenly" if report.sampled else ""
        raise UserError(
            "dataset_unusable",
            f"The dataset {data.name} has no row to train on{among}: {tokenised.dropped.describe()}",
            "Mend the rows named, or raise training_max_seq_len",
        )
    figures = tokenised.summary()
    lengths = (
        f"median {figures['tokens_median']:,}, 95 % {figures['tokens_p95']:,}, longest {figures['tokens_longest']:,}"
    )
    if tokenised.longest_uncut > tokenised.longest:
        lengths += f" of {tokenised.longest_uncut:,}"
    of_sample = f" of {tokenised.seen:,} drawn evenly" if report.sampled else ""
    if report.sampled:
        events.say(f"tokens: about {_about(report.tokens)} ({_counted(tokenised.seen, 'row')} drawn evenly: {lengths})")
    else:
        events.say(f"tokens: {report.tokens:,} in {_counted(tokenised.rows, 'row')} ({lengths})")
    if count := tokenised.cut.count:
        events.warn(
            f"{_counted(count, 'row')}{of_sample} {'is' if count == 1 else 'are'} cut to "
            f"training_max_seq_len={max_seq_len} ({tokenised.cut.where})"
        )
    if tokenised.dropped.total:
        events.warn(f"not trained on{of_sample and f',{of_sample}'}: {tokenised.dropped.describe()}")
        judged = f", judged by {_counted(tokenised.seen, 'row')} drawn evenly" if report.sampled else ""
        # What a sample shows just above the limit may be below it in all rows, which a training looks at next.
        limit = _CLEARLY * max_dropped if report.sampled else max_dropped
        if report.dropped > limit * data.rows:
            raise _too_many(report.dropped, data.rows, report.reasons, max_dropped, judged)


_CLEARLY = 1.5


def tell_mask(report: Report, events: Events) -> None:
    """Say which tokens are trained, and what the chat template makes of it."""
    tokenised = report.tokenised
    end = f" ({tokenised.end_of_turn})" if tokenised.end_of_turn else ""
    included = f"the end of {'each text' if tokenised.loss_on == 'all' else 'its turn'}{end} included"
    if tokenised.loss_on == "all":
        events.say(f"mask: all tokens are trained, {included}")
    else:
        without = "" if tokenised.endless.count == tokenised.rows else f", {included}"
        events.say(
            f"mask: {100 * tokenised.summary()['trained_share']:.0f} % of the tokens are trained, "
            f"{_WHOSE[tokenised.loss_on]}{without}"
        )
    if not tokenised.names_an_end:
        events.warn(
            "mask: the tokenizer names no token that ends a text, so an answer goes on and on unless whoever asks the "
            "model says where it stops: set eos_token in the model's tokenizer_config.json"
        )
    for name, what in _REMARKS.items():
        rows: Found = getattr(tokenised, name)
        if rows.count:
            events.warn(f"mask: {rows.count:,} of {_counted(tokenised.rows, 'row')} {what} ({rows.where})")


_REMARKS = {
    "endless": "end without a special token, so the model does not learn to end its turn: the chat template "
    "writes none behind the assistant's text",
    "partly": "are trained without their earlier answers: the chat template renders those otherwise once more is said",
    "unprompted": "have answers that begin otherwise than the chat template asks for one, as where it opens a thought: "
    "the model is trained without what it asks for",
    "spanning": "have a token that begins in the prompt and ends in the answer, and is not trained: let the chat "
    "template end its prompt with a line break or a special token",
}

_WHOSE = {
    "assistant": "those of the assistant",
    "messages": "those of all messages but the system's, as training_unmask_messages asks",
    "labels": "those that its labels name",
}


def tell_library_mask(dataset_type: str, report: Report, events: Events, *, asked: bool) -> None:
    """Say what training-hub's own way of chat rows trains, and refuse its other ways.

    :param dataset_type: training-hub's keyword.
    :param report: of a sample, or of all rows.
    :param events: takes the line.
    :param asked: ``extra_args`` has it.
    :raises UserError: another way, or rows that are no chats.
    """
    if dataset_type != "chat_template":
        raise UserError(
            "dataset_type_unknown",
            f"extra_args sets dataset_type={dataset_type!r}, and this version reads chat rows",
            "Leave it out, or set 'chat_template' for training-hub's own way, which trains on the prompts as well",
        )
    if report.structure.form in ("text", "tokens"):
        raise UserError(
            "dataset_type_unknown",
            f"With dataset_type='chat_template' training-hub reads chats, and {report.structure.name} has none",
            "Leave dataset_type out",
        )
    why = "as extra_args['dataset_type'] asks" if asked else "in training-hub's own way of LoRA on a GPU"
    events.warn(f"mask: all tokens are trained, the prompts as well, {why}")


def show_samples(count: int, rows: Iterable[Row], tokenizer: Any, encoding: Encoding, events: Events) -> None:
    """Print the first rows as the model sees them.

    :param count: how many.
    :param rows: in their order.
    :param tokenizer: the model's.
    :param encoding: how they become tokens.
    :param events: takes the text, which goes into the task log and nowhere else.
    """
    for row in islice(rows, count):
        # A row that the template refuses is dropped, counted and named elsewhere.
        with suppress(Exception):
            text = masking.marked(row, tokenizer, encoding)
            events.show(f"sample of line {row.line}, trained between ⟦ and ⟧:")
            events.show(text)


def followed(rows: Iterable[Row], total: int, events: Events, *, seconds: float = 30.0) -> Iterator[Row]:
    """Yield rows as they are, and say now and then how many of ``total`` it were."""
    spoken = time.monotonic()
    for count, row in enumerate(rows):
        if time.monotonic() - spoken >= seconds:
            spoken = time.monotonic()
            events.say(f"tokens: {count:,} of {_counted(total, 'row')} read")
        yield row


def _too_many(count: int, rows: int, dropped: Dropped, max_dropped: float, judged: str) -> UserError:
    longer = any("training_max_seq_len" in reason for reason in dropped.rows)
    return UserError(
        "too_many_rows_dropped",
        f"{'about ' if judged else ''}{count:,} of {rows:,} rows ({count / rows:.1%}) cannot be used{judged}, more "
        f"than max_dropped={max_dropped:g} allows: {dropped.describe()}",
        f"Mend the rows named, {'raise training_max_seq_len, ' if longer else ''}or raise max_dropped if they may "
        "be left out",
    )


def _doubt(found: Found, one: str, more: str) -> str:
    return f"{found.count:,} {one if found.count == 1 else more} ({found.where})" if found.count else ""


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _about(count: int) -> str:
    """Return a number as somebody would say it."""
    for size, name in ((10**9, " billion"), (10**6, " million")):
        if count >= size:
            return f"{count / size:.1f}{name}"
    return f"{round(count, 2 - len(str(count))) if count > 1000 else count:,}"
