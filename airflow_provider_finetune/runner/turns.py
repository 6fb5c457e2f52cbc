"""Which characters of a conversation are trained, once the model's chat template has rendered it."""

from __future__ import annotations

from typing import Any, NamedTuple

Message = dict[str, Any]
Span = tuple[int, int]
ChatTemplate = str | dict[str, str] | None
"""What a tokenizer has as such: one, several by name of which ``default`` renders chats, or none."""

_STAND_IN = "\ue000finetune\ue000"
"""Takes the place of a message's text, to find what a chat template puts around it."""


class UnstableTemplate(ValueError):
    """The chat template renders even the last turn of the assistant differently in context."""


class Rendered(NamedTuple):
    """A conversation as the model sees it, and the characters that are trained.

    * ``partly``: turns are left out that are rendered differently once later ones follow
    * ``unprompted``: a turn begins otherwise than the template asks for an answer
    """

    text: str
    spans: list[Span]
    partly: bool
    unprompted: bool


def render(messages: list[Message], tokenizer: Any, *, unmask: bool) -> Rendered:
    """Render a conversation and find the characters that are trained.

    A span of the assistant ends with the text that the template puts behind the turn, without white space: the
    end-of-turn token. Of others, whose turns the model is not to begin or end, it is the text alone.

    Templates of models that think (Qwen3) leave the thoughts of earlier turns out, and others (gpt-oss) end the last
    turn in another way, so the model never says an earlier turn as it is rendered in context. Such a turn is not
    trained, and what comes after the assistant's last turn is left out.

    :param messages: the conversation.
    :param tokenizer: a transformers tokenizer with a chat template.
    :param unmask: the text of every message but the system's is trained.
    :raises UnstableTemplate: see there.
    """
    text, turns = _turns(messages, tokenizer, unmask=unmask)
    partly = None in turns
    if partly:
        last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        text, turns = _turns(messages[: last + 1], tokenizer, unmask=unmask)
        if turns[-1] is None:
            raise UnstableTemplate("The chat template renders the last turn of the assistant differently in context")
    known = [turn for turn in turns if turn]
    return Rendered(text, [turn.span for turn in known], partly, any(turn.unprompted for turn in known))


class _Turn(NamedTuple):
    span: Span
    unprompted: bool


def _turns(messages: list[Message], tokenizer: Any, *, unmask: bool) -> tuple[str, list[_Turn | None]]:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return text, [
        _turn(messages[: index + 1], text, tokenizer)
        for index, message in enumerate(messages)
        if message["role"] == "assistant" or (unmask and message["role"] != "system")
    ]


def _turn(messages: list[Message], text: str, tokenizer: Any) -> _Turn | None:
    """Find the last of ``messages`` in ``text``, ``None`` where it stands there in another form."""
    *earlier, message = messages
    after = tokenizer.apply_chat_template(messages, tokenize=False)
    if message["role"] == "assistant":
        before = tokenizer.apply_chat_template(earlier, tokenize=False, add_generation_prompt=True)
        behind = after[len(after.rstrip()) :]
        # Some templates open a thought when they ask for an answer, and have none in the turn (DeepSeek R1).
        unprompted = not after.startswith(before)
        if unprompted:
            before, _ = _around(earlier, message, tokenizer)
    else:
        before, behind = _around(earlier, message, tokenizer)
        unprompted = False
    if not (after.startswith(before) and after.endswith(behind) and text.startswith(after)):
        return None
    return _Turn((len(before), len(after) - len(behind)), unprompted)


def _around(earlier: list[Message], message: Message, tokenizer: Any) -> tuple[str, str]:
    """Return what a template puts before and behind the text of a message."""
    stand_in = [*earlier, {**message, "content": _STAND_IN}]
    before, _, behind = tokenizer.apply_chat_template(stand_in, tokenize=False).partition(_STAND_IN)
    return before, behind
