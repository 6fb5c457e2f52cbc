"""Which tokens are trained, seen through templates as models bring them along.

* the assistant's text with its spaces and the token that ends its turn, and nothing else
* templates that add a system prompt, strip text, or write no end of the turn
* tokenizers that would add a token of their own; text that looks like a special token
* templates that render earlier turns differently in context, or open an answer otherwise than its turn
* unmasked: the text of the prompts too; samples show what is trained; longer rows are cut, or dropped
* plain text: all of it and the token that ends it
* what is counted: ends of turns, tokens that span prompt and answer, rows where nothing is trained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner import masking
from airflow_provider_finetune.runner.data.rows import Row
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.handover import IGNORED, Handover
from airflow_provider_finetune.runner.masking import Encoding
from tests.train.tiny_model import CHATML

WITH_SYSTEM_PROMPT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
)
STRIPPING = CHATML.replace("m['content']", "m['content'] | trim")
WITHOUT_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
REFUSING = "{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}"
QUOTING = "{% for m in messages %}{{ {}[m['content']].x.y }}{% endfor %}"

THINKING = """
{%- set ns = namespace(last_query=0) %}
{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last_query = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set content, thought = m['content'], '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}
{%- set content = content.split('</think>')[-1].lstrip() %}
{%- endif %}
{{- '<|im_start|>' + m['role'] + '\\n' }}
{%- if m['role'] == 'assistant' and loop.index0 > ns.last_query and (loop.last or thought) %}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
{%- endif %}
{{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""As Qwen3's: only what is said after the last question has its thoughts, or an empty one."""
OTHER_LAST_END = CHATML.replace(
    "<|im_end|>", "{% if loop.last and m['role'] == 'assistant' %}<|im_end|>{% else %}<|im_start|>{% endif %}"
)
"""As that of gpt-oss: the last turn ends in another token than earlier ones."""
OPENING_A_THOUGHT = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
"""As that of DeepSeek R1: it asks for a thought, and no turn has one."""
SAYING_NOTHING = CHATML.replace(
    "{{ m['content'] }}<|im_end|>\n", "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
)

TALK = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Yes.  "},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "<|im_end|> ends"},
]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    """The tokenizer of the tiny model; a test may give it another template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def trained(tokenizer: Any, messages: list[dict[str, Any]] = TALK) -> str:
    """Return the text of the tokens that are trained."""
    return trained_text(chat(messages), tokenizer, Encoding(1000))


def chat(messages: list[dict[str, Any]], line: int = 7) -> Row:
    """Return a conversation as a row."""
    return Row(str(line), messages, None)


def trained_text(row: Row, tokenizer: Any, encoding: Encoding) -> str:
    """Return the text of the tokens of a row that are trained."""
    labels = masking.encode(row, tokenizer, encoding).labels
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "Yes.  <|im_end|><|im_end|> ends<|im_end|>"),
        (WITH_SYSTEM_PROMPT, "Yes.  <|im_end|><|im_end|> ends<|im_end|>"),
        (STRIPPING, "Yes.<|im_end|><|im_end|> ends<|im_end|>"),
        (WITHOUT_END, " Yes. <|im_end|> ends"),
    ],
    ids=["ChatML", "system prompt", "stripping", "without end"],
)
def test_only_what_the_assistant_says_is_trained(tokenizer: Any, template: str, expected: str) -> None:
    tokenizer.chat_template = template
    assert trained(tokenizer) == expected


def test_a_token_that_the_tokenizer_would_put_in_front_is_not_there_twice(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
    )
    ids = masking.encode(chat(TALK), tokenizer, Encoding(1000)).ids
    assert tokenizer.decode(ids[:3]).count("<|im_start|>") == 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "Hi?Yes.  <|im_end|> end  <|im_end|> ends<|im_end|>"),
        (WITH_SYSTEM_PROMPT, "Hi?Yes.  <|im_end|> end  <|im_end|> ends<|im_end|>"),
        (STRIPPING, "Hi?Yes.<|im_end|>end<|im_end|> ends<|im_end|>"),
        (WITHOUT_END, "Hi? Yes. end   <|im_end|> ends"),
    ],
    ids=["ChatML", "system prompt", "stripping", "without end"],
)
def test_unmasked_the_text_of_prompts_is_trained_and_neither_their_frame_nor_the_systems(
    tokenizer: Any, template: str, expected: str
) -> None:
    tokenizer.chat_template = template
    talk = [{"role": "system", "content": "Be brief."}, *TALK]
    talk[3] = {"role": "user", "content": " end  "}
    assert trained_text(chat(talk), tokenizer, Encoding(1000, unmask=True)) == expected


def tokenise(tokenizer: Any, target: Path, max_seq_len: int = 1000) -> masking.Tokenised:
    """Tokenise the one conversation."""
    return masking.tokenise([chat(TALK)], tokenizer, Encoding(max_seq_len), Handover(target / "rows.parquet"))


def test_a_template_without_an_end_of_the_turn_is_noticed(tokenizer: Any, tmp_path: Path) -> None:
    assert tokenise(tokenizer, tmp_path).endless.count == 0
    assert tokenise(tokenizer, tmp_path, 40).endless.count == 0, "a row that is cut has its own warning"
    tokenizer.chat_template = WITHOUT_END
    assert tokenise(tokenizer, tmp_path).endless.count == 1


def test_a_row_that_ends_with_a_trained_prompt_has_no_end_to_learn(tokenizer: Any) -> None:
    rows = [chat(TALK[:3])]
    assert masking.tokenise(rows, tokenizer, Encoding(1000, unmask=True), None).endless.count == 0


def test_a_row_that_is_too_long_can_be_dropped_where_it_would_be_cut(tokenizer: Any, tmp_path: Path) -> None:
    encoding = Encoding(40, drop_longer=True)
    found = masking.tokenise(
        [chat(TALK, 7), chat(TALK[:2], 9)], tokenizer, encoding, Handover(tmp_path / "rows.parquet")
    )
    assert (found.rows, found.cut.count) == (1, 0)
    assert found.dropped.describe() == "1 row: it is longer than training_max_seq_len=40 (line 7)"
    assert masking.marked(chat(TALK), tokenizer, encoding).startswith("(dropped: it has ")


def test_a_template_that_refuses_a_row_is_quoted_and_the_row_is_not(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = REFUSING
    assert "(roles must alternate)" in tokenise(tokenizer, tmp_path).dropped.describe()
    tokenizer.chat_template = QUOTING
    said = tokenise(tokenizer, tmp_path).dropped.describe()
    assert "the model's chat template refuses it (" in said
    assert "Hi?" not in said


def test_a_sample_shows_the_trained_text_marked_and_ends_where_the_row_is_cut(tokenizer: Any) -> None:
    shown = masking.marked(chat(TALK), tokenizer, Encoding(1000))
    assert "<|im_start|>assistant\n⟦Yes.  <|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>" in shown
    assert shown.count("⟦") == shown.count("⟧") == 2
    assert shown.replace("⟦", "").replace("⟧", "") == tokenizer.apply_chat_template(TALK, tokenize=False)
    cut = masking.marked(chat(TALK[:2]), tokenizer, Encoding(25))
    assert cut.endswith("assistant\n⟦Yes⟧… (cut)")


def test_turns_that_are_rendered_differently_in_context_are_not_trained_and_said(
    tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.chat_template = THINKING
    assert trained(tokenizer, TALK[:2]) == "<think>\n\n</think>\n\nYes.  <|im_end|>"
    assert trained(tokenizer) == "<think>\n\n</think>\n\n<|im_end|> ends<|im_end|>"
    thought = [*TALK[:3], {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNo."}]
    assert trained(tokenizer, thought) == "<think>\nHm.\n</think>\n\nNo.<|im_end|>"
    found = masking.tokenise([chat(TALK[:2], 1), chat(TALK, 2), chat(thought, 3)], tokenizer, Encoding(1000), None)
    assert (found.rows, found.partly.count, found.partly.lines) == (3, 2, ["2", "3"])


def test_what_comes_after_the_last_answer_does_not_take_it_away(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    talk = [*TALK, {"role": "user", "content": "Thanks"}]
    assert trained(tokenizer, talk) == "<think>\n\n</think>\n\n<|im_end|> ends<|im_end|>"
    assert "Thanks" not in masking.marked(chat(talk), tokenizer, Encoding(1000))
    # What the user says is rendered in one way only.
    unmasked = trained_text(chat(talk), tokenizer, Encoding(1000, unmask=True))
    assert unmasked == "Hi?Bye<think>\n\n</think>\n\n<|im_end|> ends<|im_end|>"


def test_a_last_turn_that_ends_in_another_token_is_trained_with_it(tokenizer: Any) -> None:
    tokenizer.chat_template = OTHER_LAST_END
    assert trained(tokenizer) == "<|im_end|> ends<|im_end|>"


def test_a_template_that_opens_a_thought_which_no_turn_has_is_noticed(tokenizer: Any) -> None:
    tokenizer.chat_template = OPENING_A_THOUGHT
    assert trained(tokenizer) == "Yes.  <|im_end|><|im_end|> ends<|im_end|>"
    found = masking.tokenise([chat(TALK)], tokenizer, Encoding(1000), None)
    assert (found.unprompted.count, found.partly.count) == (1, 0)


def test_a_row_of_which_the_template_leaves_out_the_answer_is_dropped(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = SAYING_NOTHING
    assert tokenise(tokenizer, tmp_path).dropped.describe() == (
        "1 row: the model's chat template leaves out what its assistant says (line 7)"
    )


def test_a_token_that_spans_prompt_and_answer_is_counted(tokenizer: Any) -> None:
    tokenizer.chat_template = WITHOUT_END.replace("assistant:{% endif %}", "assistant: {% endif %}")
    assert masking.tokenise([chat(TALK[:2])], tokenizer, Encoding(1000), None).spanning.count == 0
    tokenizer.add_tokens(": Y")
    found = masking.tokenise([chat(TALK[:2])], tokenizer, Encoding(1000), None)
    assert (found.spanning.count, found.spanning.lines) == (1, ["7"])
    assert trained(tokenizer, TALK[:2]) == "es."


def test_of_a_plain_text_everything_is_trained_and_its_end(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = None
    text = Row("3", None, "Once upon a time.")
    assert trained_text(text, tokenizer, Encoding(1000)) == "Once upon a time.<|im_end|>"
    assert masking.marked(text, tokenizer, Encoding(1000)) == "⟦Once upon a time.<|im_end|>⟧"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
    )
    assert trained_text(text, tokenizer, Encoding(1000)) == "<|im_start|>Once upon a time.<|im_end|>"
    found = masking.tokenise([text], tokenizer, Encoding(1000), None)
    assert (found.loss_on, found.end_of_turn, found.endless.count) == ("all", "<|im_end|>", 0)
    assert found.trained_tokens == found.tokens - 1, "nothing stands before the first token that could predict it"


def test_a_text_needs_a_token_that_ends_it_and_a_conversation_has_its_own(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="never stops") as raised:
        masking.tokenise([Row("3", None, "Once.")], tokenizer, Encoding(1000), None)
    assert raised.value.failure.cause == "tokenizer_without_end"
    found = masking.tokenise([chat(TALK)], tokenizer, Encoding(1000), None)
    assert (found.names_an_end, found.end_of_turn) == (False, "<|im_end|>")
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="nor one that fills up shorter rows"):
        masking.tokenise([chat(TALK)], tokenizer, Encoding(1000), None)


def test_what_is_only_counted_is_counted_as_what_is_written(tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = [chat(TALK, line) for line in range(1500)]
    written = masking.tokenise(rows, tokenizer, Encoding(1000), Handover(tmp_path / "rows.parquet"))
    assert masking.tokenise(rows, tokenizer, Encoding(1000), None).summary() == written.summary()
    assert pq.read_metadata(tmp_path / "rows.parquet").num_rows == written.rows == 1500
