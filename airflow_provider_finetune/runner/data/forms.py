"""The forms that rows come in: which one a row has, and what it is as a chat or as a text.

=================== ==================================================================================================
``messages``        ``messages``: list of ``role`` and ``content``
``sharegpt``        ``conversations``: list of ``from`` and ``value``; ``system`` may stand beside it
``alpaca``          ``instruction`` and ``output``; ``input``, ``system`` and ``history`` may stand beside them
``prompt_completion`` ``prompt`` and ``completion`` or ``response``, or ``question`` and ``answer``: texts or lists of
                    messages
``text``            ``text``, trained on as it is
``tokens``          ``input_ids`` and ``labels``: whole numbers, -100 in ``labels`` where a token is not trained
=================== ==================================================================================================

A reason may name the keys of a form, never what a row has there: reasons travel in the outcome, and are to be few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_provider_finetune.runner.data.counts import Reason

Row = dict[str, Any]
Message = dict[str, Any]

_KEYS: dict[str, tuple[tuple[str, str], ...] | tuple[tuple[str], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("instruction", "output"),),
    "prompt_completion": (("prompt", "completion"), ("prompt", "response"), ("question", "answer")),
    "text": (("text",),),
    "tokens": (("input_ids", "labels"),),
}
"""What a row of each form has; of several forms in one row the first counts."""

_MORE = {"sharegpt": ("system",), "alpaca": ("input", "system", "history")}

NAMES = tuple(_KEYS)

KNOWN = (
    "'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'completion' (or 'response'), 'question' "
    "and 'answer', 'text', or 'input_ids' and 'labels'"
)
"""The forms by their columns, for messages."""

NO_ANSWER = Reason("it has no assistant message with text")

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}

_UNKNOWN_SPEAKER = Reason(f"a message is from none of {', '.join(_SPEAKERS)}")
_NO_TEXT = Reason("a message has a part that is no text, and only parts of text can be used")


def columns(form: str) -> tuple[str, ...]:
    """Return the columns that the rows of a form are made of."""
    return (*dict.fromkeys(key for keys in _KEYS[form] for key in keys), *_MORE.get(form, ()))


def recognise(row: Any) -> str | None:
    """Return the name of the form that ``row`` has, ``None`` for one that is not known."""
    if not isinstance(row, dict):
        return None
    return next((form for form, ways in _KEYS.items() if any(_has(row, keys) for keys in ways)), None)


def _has(row: Row, keys: tuple[str, ...]) -> bool:
    return all(row.get(key) is not None for key in keys)


def convert(row: Any, form: str) -> Row | Reason:
    """Return what a row is trained on.

    :param row: as it was read.
    :param form: one of :data:`NAMES`.
    :return: ``{"messages": […]}`` with text in each message and in at least one of the assistant's, ``{"text": …}``,
        or ``{"input_ids": […], "labels": […]}``; the row's own objects where nothing had to be changed. Or the reason
        why not.
    """
    converted = _CONVERTERS[form](row) if isinstance(row, dict) else Reason(_MISSING[form])
    if isinstance(converted, Reason):
        other = recognise(row)
        if other not in (None, form):
            return Reason(f"it has the form '{other}', and the data set the form '{form}'")
        return converted
    if isinstance(converted, str):
        return {"text": converted}
    if isinstance(converted, dict):
        return converted
    for message in converted:
        if message["role"] == "assistant" and not is_blank(message["content"]):
            return {"messages": converted}
    return NO_ANSWER


def is_blank(text: str) -> bool:
    """Say whether nothing stands in ``text`` but white space."""
    return not text or text.isspace()


def _of_messages(row: Row) -> list[Message] | Reason:
    messages = row.get("messages")
    return _turns(messages) if messages and isinstance(messages, list) else Reason(_MISSING["messages"])


def _of_sharegpt(row: Row) -> list[Message] | Reason:
    said = row.get("conversations")
    if not said or not isinstance(said, list):
        return Reason(_MISSING["sharegpt"])
    turns = _turns(said)
    if isinstance(turns, Reason):
        return turns
    turns = [{**turn, "role": _SPEAKERS.get(turn["role"], turn["role"])} for turn in turns]
    return turns if turns[0]["role"] == "system" else [*_system(row), *turns]


def _of_alpaca(row: Row) -> list[Message] | Reason:
    texts = [row.get(name) for name in ("instruction", "input")]
    question = "\n\n".join(text for text in texts if isinstance(text, str) and not is_blank(text))
    if not question:
        return Reason("its 'instruction' has no text")
    if not isinstance(row.get("output"), str):
        return Reason("its 'output' is no text")
    turns = _system(row)
    for pair in row.get("history") or ():
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            return Reason("its 'history' is no list of pairs of texts")
        turns += _exchange(*pair)
    return turns + _exchange(question, row["output"])


def _of_prompt_completion(row: Row) -> list[Message] | Reason:
    keys = next((keys for keys in _KEYS["prompt_completion"] if _has(row, keys)), None)
    if keys is None:
        return Reason(_MISSING["prompt_completion"])
    turns: list[Any] = []
    for key, role in zip(keys, ("user", "assistant"), strict=True):
        value = row[key]
        if isinstance(value, str) and (role == "assistant" or not is_blank(value)):
            turns.append({"role": role, "content": value})
        elif isinstance(value, list) and value:
            turns += value
        else:
            return Reason(f"its '{key}' has no text")
    return _turns(turns)


def _of_text(row: Row) -> str | Reason:
    text = row.get("text")
    return text if isinstance(text, str) and not is_blank(text) else Reason(_MISSING["text"])


def _of_tokens(row: Row) -> Row | Reason:
    ids, labels = row.get("input_ids"), row.get("labels")
    if not isinstance(ids, list) or not isinstance(labels, list) or not ids:
        return Reason(_MISSING["tokens"])
    if len(ids) != len(labels):
        return Reason("its 'input_ids' and 'labels' are not of one length")
    if not all(type(token) is int and token >= 0 for token in ids):
        return Reason("its 'input_ids' are no whole numbers from 0 on")
    if not all(type(label) is int and (label >= 0 or label == _NOT_TRAINED) for label in labels):
        return Reason("its 'labels' are no whole numbers from 0 on, with -100 where a token is not trained")
    return {"input_ids": ids, "labels": labels}


_NOT_TRAINED = -100

_CONVERTERS: dict[str, Callable[[Row], list[Message] | str | Row | Reason]] = {
    "messages": _of_messages,
    "sharegpt": _of_sharegpt,
    "alpaca": _of_alpaca,
    "prompt_completion": _of_prompt_completion,
    "text": _of_text,
    "tokens": _of_tokens,
}

_MISSING = {
    "messages": "it has no list 'messages'",
    "sharegpt": "it has no list 'conversations'",
    "alpaca": "it has no 'instruction' with an 'output'",
    "prompt_completion": "it has no 'prompt' with a 'completion'",
    "text": "it has no text in 'text'",
    "tokens": "it has no lists 'input_ids' and 'labels'",
}


def _system(row: Row) -> list[Message]:
    text = row.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and not is_blank(text) else []


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _turns(messages: list[Any]) -> list[Message] | Reason:
    """Return messages with ``role`` and text in ``content``: the very list where they have them."""
    for message in messages:
        if not (type(message) is dict and type(message.get("role")) is str and type(message.get("content")) is str):
            break
    else:
        return messages
    turns = []
    for message in messages:
        turn = _turn(message)
        if isinstance(turn, Reason):
            return turn
        turns.append(turn)
    return turns


def _turn(message: Any) -> Message | Reason:
    if not isinstance(message, dict):
        return Reason("a message has no 'role'")
    if isinstance(message.get("role"), str):
        text = _text(message.get("content"), "content")
        return text if isinstance(text, Reason) else {**message, "content": text}
    speaker = message.get("from")
    if not isinstance(speaker, str):
        return Reason("a message has no 'role'")
    role = _SPEAKERS.get(speaker.lower())
    if role is None:
        return _UNKNOWN_SPEAKER
    text = _text(message.get("value"), "value")
    return text if isinstance(text, Reason) else {"role": role, "content": text}


def _text(content: Any, key: str) -> str | Reason:
    """Return a message's text, which may come in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return Reason(f"a message has no text in '{key}'")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return _NO_TEXT
        texts.append(part["text"])
    return "".join(texts)
