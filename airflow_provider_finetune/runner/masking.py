"""Token ids and labels of rows: which tokens are trained.

Of a conversation only what the assistant says is trained, with the token that ends its turn, as SFT and OSFT do; where
somebody unmasks the messages, the text of all others but the system's as well. Of a plain text everything is trained,
and the token that ends it. training-hub 0.11's ``lora_sft`` renders messages to text and trains on the prompts as well;
rows of ``input_ids`` and ``labels`` passed through (``dataset_type="passthrough"``) keep their mask.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, NamedTuple

from airflow_provider_finetune.runner.data.counts import Dropped, Found
from airflow_provider_finetune.runner.data.rows import Row
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.handover import IGNORED, Handover
from airflow_provider_finetune.runner.turns import Span, UnstableTemplate, render


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


@dataclass
class Tokenised:
    """What tokenising has found; lengths in tokens, after cutting."""

    lengths: array[int] = field(default_factory=lambda: array("I"))
    trained_tokens: int = 0
    cut: Found = field(default_factory=Found)
    """Rows of which the end is cut off."""
    longest_uncut: int = 0
    """Tokens of the longest row before cutting, of those that are dropped for their length as well."""
    dropped: Dropped = field(default_factory=Dropped)
    endless: Found = field(default_factory=Found)
    """Rows that are not cut and whose last trained token is an ordinary one: no end of the turn is learned."""
    ends: Counter[str] = field(default_factory=Counter)
    """The special tokens that rows end with."""
    partly: Found = field(default_factory=Found)
    """Rows with earlier turns that are not trained, since they are rendered differently once later ones follow."""
    unprompted: Found = field(default_factory=Found)
    """Rows with turns that begin otherwise than the chat template asks for an answer."""
    spanning: Found = field(default_factory=Found)
    """Rows with a token that begins in a prompt and ends in the trained text, and that is not trained."""
    names_an_end: bool = True
    """Whether the tokenizer says which token ends a text, at which whoever asks the model stops."""
    loss_on: str = "assistant"
    """Whose words are trained: ``assistant``, ``messages``, ``all`` of a plain text, or the ``labels`` of tokens."""

    @property
    def rows(self) -> int:
        """How many rows are trained on."""
        return len(self.lengths)

    @property
    def seen(self) -> int:
        """How many rows were read: those that are trained on and those that are dropped."""
        return self.rows + self.dropped.total

    @property
    def tokens(self) -> int:
        """How many tokens one epoch reads."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    @property
    def end_of_turn(self) -> str | None:
        """The special token that most rows learn to end with, ``None`` where they learn none."""
        return self.ends.most_common(1)[0][0] if self.ends else None

    def summary(self) -> dict[str, Any]:
        """Return the figures for the outcome."""
        ordered = sorted(self.lengths)
        found = {
            "cut": self.cut,
            "without_end_of_turn": self.endless,
            "trained_in_part": self.partly,
            "begun_otherwise": self.unprompted,
            "with_spanning_token": self.spanning,
        }
        return {
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_share": round(self.trained_tokens / max(self.tokens, 1), 4),
            "loss_on": self.loss_on,
            "end_of_turn": self.end_of_turn,
            "tokens_median": ordered[len(ordered) // 2] if ordered else 0,
            "tokens_p95": ordered[int(len(ordered) * 0.95)] if ordered else 0,
            "tokens_longest": self.longest,
            "tokens_longest_uncut": self.longest_uncut,
            **({} if self.names_an_end else {"tokenizer_names_no_end": True}),
            **{f"rows_{name}": rows.count for name, rows in found.items()},
            **{f"{name}_lines": rows.lines for name, rows in found.items() if rows.count},
        }


class Encoded(NamedTuple):
    """One row as the model gets it, after cutting.

    * ``labels``: :data:`IGNORED` where a token is not trained
    * ``places``: the characters of ``text`` that each token covers
    * ``tokens``: how many there were before cutting
    * ``spanning``: some token begins in a prompt and ends in the trained text
    """

    text: str
    places: list[Span]
    ids: list[int]
    labels: list[int]
    tokens: int
    spanning: bool = False
    partly: bool = False
    unprompted: bool = False

    @property
    def longer(self) -> bool:
        """Whether tokens were cut off."""
        return self.tokens > len(self.ids)


def encode(row: Row, tokenizer: Any, encoding: Encoding) -> Encoded:
    """Tokenise one row and cut it to ``max_seq_len`` tokens.

    :param row: a conversation, a text or tokens.
    :param tokenizer: a fast transformers tokenizer, for conversations with a chat template.
    :param encoding: how.
    :raises UnstableTemplate: see there.
    :raises UserError: the tokenizer has no token to end a text with.
    """
    if row.tokens:
        ids, labels = row.tokens
        whole = Encoded("", [], ids, labels, len(ids))
    else:
        whole = _encode_text(row.text, tokenizer) if row.text is not None else _encode_chat(row, tokenizer, encoding)
    end = encoding.max_seq_len
    return whole._replace(places=whole.places[:end], ids=whole.ids[:end], labels=whole.labels[:end])


def _encode_chat(row: Row, tokenizer: Any, encoding: Encoding) -> Encoded:
    rendered = render(row.messages or [], tokenizer, unmask=encoding.unmask)
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    labels, spanning, spans = [], False, iter(rendered.spans)
    start, end = next(spans, (len(rendered.text) + 1,) * 2)
    for token, (first, last) in zip(ids, places, strict=True):
        while end <= first:
            start, end = next(spans, (len(rendered.text) + 1,) * 2)
        labels.append(token if start <= first else IGNORED)
        spanning = spanning or first < start < last
    return Encoded(rendered.text, places, ids, labels, len(ids), spanning, rendered.partly, rendered.unprompted)


def _encode_text(text: str, tokenizer: Any) -> Encoded:
    """Train everything: the text with what the tokenizer puts in front of it, and the token that ends it."""
    if tokenizer.eos_token_id is None:
        raise _without_end(tokenizer, "names no token that ends a text, so a model trained on plain text never stops")
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids, places = [*ids, tokenizer.eos_token_id], [*places, (len(text), len(text) + len(tokenizer.eos_token))]
        text += tokenizer.eos_token
    return Encoded(text, places, ids, ids, len(ids))


def _without_end(tokenizer: Any, why: str) -> UserError:
    return UserError(
        "tokenizer_without_end",
        f"The tokenizer of {tokenizer.name_or_path} {why}",
        "Set eos_token in the model's tokenizer_config.json",
    )


def marked(row: Row, tokenizer: Any, encoding: Encoding) -> str:
    """Return a row as the model sees it, with the text that is trained between ``⟦`` and ``⟧``.

    :param row: a conversation or a text.
    :param tokenizer: a fast transformers tokenizer, for conversations with a chat template.
    :param encoding: how it is tokenised; what comes after a cut is left out.
    """
    encoded = encode(row, tokenizer, encoding)
    if encoded.longer and encoding.drop_longer:
        return f"(dropped: it has {encoded.tokens} tokens)"
    if row.tokens:
        pieces = [tokenizer.decode([token]) for token in encoded.ids]
        ends = list(accumulate(map(len, pieces)))
        encoded = encoded._replace(text="".join(pieces), places=list(zip([0, *ends], ends, strict=False)))
    text, parts, position = encoded.text, [], 0
    for trained, tokens in groupby(zip(encoded.places, encoded.labels, strict=True), lambda token: token[1] != IGNORED):
        end = max(last for (_, last), _ in tokens)
        parts.append(f"⟦{text[position:end]}⟧" if trained else text[position:end])
        position = max(position, end)
    return "".join(parts) + ("… (cut)" if encoded.longer else "")


def tokenise(rows: Iterable[Row], tokenizer: Any, encoding: Encoding, target: Handover | None) -> Tokenised:
    """Tokenise rows, and hand over those that can be trained on.

    :param rows: conversations, texts or tokens.
    :param tokenizer: a fast transformers tokenizer, for conversations with a chat template.
    :param encoding: how; a row that is left without a trained token is dropped.
    :param target: the file to write the others to; ``None`` only counts.
    :raises UserError: the tokenizer has no token to end a text with, or none to fill up rows in a batch.
    """
    found = Tokenised(loss_on="messages" if encoding.unmask else "assistant")
    found.names_an_end = tokenizer.eos_token_id is not None
    if not found.names_an_end and tokenizer.pad_token_id is None:
        raise _without_end(tokenizer, "names neither a token that ends a text nor one that fills up shorter rows")
    ends = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    with target.written() if target else nullcontext() as write:
        for row in rows:
            encoded = _encode_or_drop(row, tokenizer, encoding, found)
            if encoded:
                if write:
                    write(row.messages, encoded.ids, encoded.labels)
                _count(row, encoded, found)
                _look_at_end(row, encoded, tokenizer, ends, encoding, found)
    return found


def _encode_or_drop(row: Row, tokenizer: Any, encoding: Encoding, found: Tokenised) -> Encoded | None:
    if row.tokens and max(row.tokens[0]) >= len(tokenizer):
        found.dropped.add(row.line, "its 'input_ids' have a token that the model's vocabulary lacks")
        return None
    try:
        encoded = encode(row, tokenizer, encoding)
    except UserError:
        raise
    except UnstableTemplate:
        found.dropped.add(row.line, "the model's chat template renders its turns differently in context")
        return None
    except Exception as error:
        # Templates refuse rows in words of their own ("roles must alternate"); what else is raised may quote the row,
        # and no part of the data belongs into an outcome.
        why = str(error)[:200] if type(error).__name__ == "TemplateError" else type(error).__name__
        who = "chat template" if row.messages else "tokenizer"
        found.dropped.add(row.line, f"the model's {who} refuses it ({why})")
        return None
    found.longest_uncut = max(found.longest_uncut, encoded.tokens)
    if encoded.longer and encoding.drop_longer:
        found.dropped.add(row.line, f"it is longer than training_max_seq_len={encoding.max_seq_len}")
    elif _trained(encoded):
        return encoded
    elif encoded.longer:
        limit = f"training_max_seq_len={encoding.max_seq_len}"
        found.dropped.add(row.line, f"no token of the assistant is left within {limit}")
    elif row.tokens:
        found.dropped.add(row.line, "its 'labels' train no token")
    else:
        found.dropped.add(row.line, "the model's chat template leaves out what its assistant says")
    return None


def _trained(encoded: Encoded) -> int:
    # The first token is only ever input: the loss compares each token with the one before it.
    return sum(label != IGNORED for label in encoded.labels[1:])


def _count(row: Row, encoded: Encoded, found: Tokenised) -> None:
    found.lengths.append(len(encoded.ids))
    found.trained_tokens += _trained(encoded)
    if row.tokens:
        found.loss_on = "labels"
    elif row.messages is None:
        found.loss_on = "all"
    for seen, rows in (
        (encoded.longer, found.cut),
        (encoded.partly, found.partly),
        (encoded.unprompted, found.unprompted),
        (encoded.spanning, found.spanning),
    ):
        if seen:
            rows.add(row.line)


def _look_at_end(
    row: Row, encoded: Encoded, tokenizer: Any, ends: set[int], encoding: Encoding, found: Tokenised
) -> None:
    # Where prompts are trained, one that stands last has no end of a turn to learn.
    if encoded.longer or row.tokens or (encoding.unmask and row.messages and row.messages[-1]["role"] != "assistant"):
        return
    last = next(label for label in reversed(encoded.labels) if label != IGNORED)
    if last in ends:
        found.ends[tokenizer.convert_ids_to_tokens(last)] += 1
    else:
        found.endless.add(row.line)
