"""Rows of every form become chats or texts, and of each that cannot the reason is said without its text.

* each form, with what may stand beside it; parts of text; speakers by many names
* which form counts where a row has several
* what is wrong with a row
"""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_finetune.runner.data import forms
from airflow_provider_finetune.runner.data.counts import Reason

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("row", "form", "messages"),
    [
        ({"messages": [USER, ASSISTANT]}, "messages", [USER, ASSISTANT]),
        (
            {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "messages",
            [USER, ASSISTANT],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASSISTANT]},
            "messages",
            [USER, ASSISTANT],
        ),
        (
            {
                "conversations": [
                    {"from": "System", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "bard", "value": "a"},
                ]
            },
            "sharegpt",
            [SYSTEM, USER, ASSISTANT],
        ),
        (
            {"system": "s", "conversations": [{"role": "user", "content": "q"}, {"role": "gpt", "content": "a"}]},
            "sharegpt",
            [SYSTEM, USER, ASSISTANT],
        ),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", [USER, ASSISTANT]),
        ({"instruction": "q", "input": None, "output": "a", "system": "s"}, "alpaca", [SYSTEM, USER, ASSISTANT]),
        (
            {"instruction": "q", "input": "more", "output": "a", "history": [["q", "a"]]},
            "alpaca",
            [USER, ASSISTANT, {"role": "user", "content": "q\n\nmore"}, ASSISTANT],
        ),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", [USER, ASSISTANT]),
        ({"prompt": "q", "response": "a"}, "prompt_completion", [USER, ASSISTANT]),
        ({"question": "q", "answer": "a"}, "prompt_completion", [USER, ASSISTANT]),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, "prompt_completion", [SYSTEM, USER, ASSISTANT]),
    ],
)
def test_a_row_of_each_form_becomes_a_chat(row: dict[str, Any], form: str, messages: list[dict[str, str]]) -> None:
    assert forms.recognise(row) == form
    assert forms.convert(row, form) == {"messages": messages}


def test_a_text_stays_a_text() -> None:
    assert forms.recognise({"text": "Once"}) == "text"
    assert forms.convert({"text": "Once", "url": "x"}, "text") == {"text": "Once"}


def test_messages_that_are_right_are_not_copied_so_that_their_line_can_be_taken_as_it_is() -> None:
    row = {"messages": [{**USER, "name": "x"}, ASSISTANT]}
    converted = forms.convert(row, "messages")
    assert isinstance(converted, dict)
    assert converted["messages"] is row["messages"]


@pytest.mark.parametrize("second", ["conversations", "instruction", "prompt", "text"])
def test_of_several_forms_in_a_row_the_richest_counts(second: str) -> None:
    values = {
        "text": "t",
        "prompt": "q",
        "completion": "a",
        "instruction": "q",
        "output": "a",
        "conversations": [USER, ASSISTANT],
        "messages": [USER, ASSISTANT],
    }
    order = ["messages", "conversations", "instruction", "prompt", "text"]
    forms_of = ["messages", "sharegpt", "alpaca", "prompt_completion", "text"]
    assert forms.recognise(values) == "messages"
    for key in order[: order.index(second)]:
        del values[key]
    assert forms.recognise(values) == forms_of[order.index(second)]


@pytest.mark.parametrize("row", [{"label": 1}, {"prompt": "q"}, {"messages": None}, [USER], "text", 1, None, {}])
def test_a_row_of_no_known_form_is_not_recognised(row: Any) -> None:
    assert forms.recognise(row) is None


@pytest.mark.parametrize(
    ("row", "form", "reason"),
    [
        ([1], "messages", "it has no list 'messages'"),
        ({"messages": {}}, "messages", "it has no list 'messages'"),
        ({"messages": []}, "messages", "it has no list 'messages'"),
        ({"messages": ["SECRET"]}, "messages", "a message has no 'role'"),
        ({"messages": [{"content": "SECRET"}]}, "messages", "a message has no 'role'"),
        ({"messages": [{"role": "user", "content": float("nan")}]}, "messages", "a message has no text in 'content'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "a message has no text in 'content'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "SECRET", "url": "SECRET"}]}]},
            "messages",
            "a message has a part that is no text, and only parts of text can be used",
        ),
        ({"messages": [USER]}, "messages", "it has no assistant message with text"),
        ({"messages": [USER, {**ASSISTANT, "content": " \n"}]}, "messages", "it has no assistant message with text"),
        ({"conversations": "SECRET"}, "sharegpt", "it has no list 'conversations'"),
        (
            {"conversations": [{"from": "SECRET", "value": "SECRET"}]},
            "sharegpt",
            "a message is from none of human, user, gpt, assistant, chatgpt, bing, bard, model, system",
        ),
        ({"conversations": [{"from": "gpt"}]}, "sharegpt", "a message has no text in 'value'"),
        ({"instruction": " ", "output": "SECRET"}, "alpaca", "its 'instruction' has no text"),
        ({"instruction": "SECRET", "output": 1}, "alpaca", "its 'output' is no text"),
        ({"instruction": "SECRET", "output": ""}, "alpaca", "it has no assistant message with text"),
        (
            {"instruction": "q", "output": "a", "history": [["SECRET"]]},
            "alpaca",
            "its 'history' is no list of pairs of texts",
        ),
        ({"prompt": "", "completion": "SECRET"}, "prompt_completion", "its 'prompt' has no text"),
        ({"prompt": "SECRET", "completion": 1}, "prompt_completion", "its 'completion' has no text"),
        ({"prompt": "SECRET"}, "prompt_completion", "it has no 'prompt' with a 'completion'"),
        ({"text": " "}, "text", "it has no text in 'text'"),
        ({"text": "SECRET"}, "messages", "it has the form 'text', and the data set the form 'messages'"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_without_its_text(row: Any, form: str, reason: str) -> None:
    converted = forms.convert(row, form)
    assert isinstance(converted, Reason)
    assert converted == reason
