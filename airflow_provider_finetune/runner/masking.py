"""Token ids and labels of chat rows: which tokens are trained.

Only what the assistant says is trained, with the token that ends its turn, as SFT and OSFT do; where somebody unmasks
the messages, the text of all others but the system's as well. training-hub 0.11's ``lora_sft`` renders messages to text
and trains on the prompts as well; rows of ``input_ids`` and ``labels`` passed through (``dataset_type="passthrough"``)
keep their mask.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from airflow_provider_finetune.runner.dataset import Dropped, Message

IGNORED = -100
"""The label that torch's cross entropy leaves out of the loss."""

_ROWS_PER_BATCH = 1000

_STAND_IN = "\ue000finetune\ue000"
"""Takes the place of a message's text, to find what a chat template puts around it."""


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens.

    * ``max_seq_len``: most tokens of a row
    * ``drop_longer``: longer rows are dropped (SFT, OSFT); else they are cut (LoRA)
    * ``unmask``: the text of every message but the system's is trained
    """

    max_seq_len: int
    drop_longer: bool = False
    unmask: bool = False

    @property
    def trained(self) -> str:
        """Whose words are trained."""
        return "messages" if self.unmask else "assistant"


class UnstableTemplate(ValueError):
    """The chat template renders earlier turns differently once later ones follow, so spans cannot be told apart."""


@dataclass
class Tokenised:
    """What tokenising has found; lengths in tokens, after cutting."""

    lengths: array[int] = field(default_factory=lambda: array("I"))
    trained_tokens: int = 0
    cut_rows: int = 0
    endless_rows: int = 0
    """Rows that are not cut and whose last trained token is an ordinary one: no end of the turn is learned."""
    dropped: Dropped = field(default_factory=Dropped)
    loss_on: str = "assistant"

    @property
    def rows(self) -> int:
        """How many rows are trained on."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """How many tokens one epoch reads."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    def summary(self) -> dict[str, Any]:
        """Return the figures for the outcome."""
        ordered = sorted(self.lengths)
        return {
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_share": round(self.trained_tokens / max(self.tokens, 1), 4),
            "loss_on": self.loss_on,
            "tokens_median": ordered[len(ordered) // 2] if ordered else 0,
            "tokens_p95": ordered[int(len(ordered) * 0.95)] if ordered else 0,
            "tokens_longest": self.longest,
            "rows_cut": self.cut_rows,
            "rows_without_end_of_turn": self.endless_rows,
        }


def trained_spans(messages: list[Message], tokenizer: Any, *, unmask: bool) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and find the characters that are trained.

    A span of the assistant ends with the text that the template puts behind the turn, without white space: the
    end-of-turn token. Of others, whose turns the model is not to begin or end, it is the text alone.

    :param messages: the conversation.
    :param tokenizer: a transformers tokenizer with a chat template.
    :param unmask: the text of every message but the system's is trained.
    :return: the rendered text and the ``(start, end)`` of each span.
    :raises UnstableTemplate: see there.
    """
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" and (not unmask or message["role"] == "system"):
            continue
        after = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
            behind = after[len(after.rstrip()) :]
        else:
            stand_in = [*messages[:index], {**message, "content": _STAND_IN}]
            before, _, behind = tokenizer.apply_chat_template(stand_in, tokenize=False).partition(_STAND_IN)
        if not (after.startswith(before) and after.endswith(behind) and whole.startswith(after)):
            raise UnstableTemplate(f"The chat template renders message {index + 1} differently alone and in context")
        spans.append((len(before), len(after) - len(behind)))
    return whole, spans


def encode(messages: list[Message], tokenizer: Any, encoding: Encoding) -> tuple[list[int], list[int], bool]:
    """Tokenise one conversation.

    :param messages: the conversation.
    :param tokenizer: a fast transformers tokenizer with a chat template.
    :param encoding: how.
    :return: ``input_ids``, ``labels`` (:data:`IGNORED` where not trained), and whether the row was longer than
        ``max_seq_len`` tokens, to which both are cut.
    """
    _, _, ids, labels = _labelled(messages, tokenizer, encoding)
    return ids[: encoding.max_seq_len], labels[: encoding.max_seq_len], len(ids) > encoding.max_seq_len


def _labelled(
    messages: list[Message], tokenizer: Any, encoding: Encoding
) -> tuple[str, list[tuple[int, int]], list[int], list[int]]:
    """Return the rendered text, and of each token its characters, its id and its label."""
    text, spans = trained_spans(messages, tokenizer, unmask=encoding.unmask)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if any(start <= first < end for start, end in spans) else IGNORED
        for token, (first, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return text, encoded["offset_mapping"], encoded["input_ids"], labels


def marked(messages: list[Message], tokenizer: Any, encoding: Encoding) -> str:
    """Return a conversation as the model sees it, with the text that is trained between ``⟦`` and ``⟧``.

    :param messages: the conversation.
    :param tokenizer: a fast transformers tokenizer with a chat template.
    :param encoding: how it is tokenised; what comes after a cut is left out.
    """
    text, places, ids, labels = _labelled(messages, tokenizer, encoding)
    longer = len(ids) > encoding.max_seq_len
    if longer and encoding.drop_longer:
        return f"(dropped: it has {len(ids)} tokens)"
    parts, position = [], 0
    kept = list(zip(places[: encoding.max_seq_len], labels[: encoding.max_seq_len], strict=True))
    for trained, tokens in groupby(kept, key=lambda token: token[1] != IGNORED):
        end = max(last for (_, last), _ in tokens)
        parts.append(f"⟦{text[position:end]}⟧" if trained else text[position:end])
        position = max(position, end)
    return "".join(parts) + ("… (cut)" if longer else "")


def tokenise(rows: Iterable[tuple[int, list[Message]]], tokenizer: Any, encoding: Encoding, target: Path) -> Tokenised:
    """Tokenise all rows into a parquet file with the columns ``input_ids`` and ``labels``.

    :param rows: line number and messages.
    :param tokenizer: a fast transformers tokenizer with a chat template.
    :param encoding: how; a row that is left without a trained token is dropped.
    :param target: the file to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = Tokenised(loss_on=encoding.trained)
    ends = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    target.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    batch: list[dict[str, list[int]]] = []
    with pq.ParquetWriter(target, schema) as writer:
        for line, messages in rows:
            row = _encode_or_drop(line, messages, tokenizer, encoding, found)
            if row:
                batch.append(row)
                # Where prompts are trained, one that stands last has no end of a turn to learn.
                speaks_last = not encoding.unmask or messages[-1]["role"] == "assistant"
                whole = len(row["labels"]) < encoding.max_seq_len
                found.endless_rows += speaks_last and whole and _last_trained(row["labels"]) not in ends
            if len(batch) == _ROWS_PER_BATCH:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return found


def _last_trained(labels: list[int]) -> int:
    return next(label for label in reversed(labels) if label != IGNORED)


def _encode_or_drop(
    line: int, messages: list[Message], tokenizer: Any, encoding: Encoding, found: Tokenised
) -> dict[str, list[int]] | None:
    try:
        ids, labels, longer = encode(messages, tokenizer, encoding)
    except UnstableTemplate:
        found.dropped.add(line, "the model's chat template renders its earlier turns differently in context")
        return None
    except Exception as error:
        # Templates refuse rows in words of their own ("roles must alternate"); what else is raised may quote the row,
        # and no part of the data belongs into an outcome.
        why = str(error)[:200] if type(error).__name__ == "TemplateError" else type(error).__name__
        found.dropped.add(line, f"the model's chat template refuses it ({why})")
        return None
    if longer and encoding.drop_longer:
        found.dropped.add(line, f"it is longer than training_max_seq_len={encoding.max_seq_len}")
        return None
    # The first token is only ever input: the loss compares each token with the one before it.
    trained = sum(label != IGNORED for label in labels[1:])
    if not trained:
        found.dropped.add(line, f"no token of the assistant is left within training_max_seq_len={encoding.max_seq_len}")
        return None
    found.lengths.append(len(ids))
    found.trained_tokens += trained
    found.cut_rows += longer
    return {"input_ids": ids, "labels": labels}
