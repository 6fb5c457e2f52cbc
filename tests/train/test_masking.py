"""Which tokens are trained, seen through templates as models bring them along.

* the assistant's text with its spaces and the token that ends its turn, and nothing else
* templates that add a system prompt, strip text, or write no end of the turn
* tokenizers that would add a token of their own; text that looks like a special token
* unmasked: the text of the prompts too; samples show what is trained; longer rows are cut, or dropped
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner import masking
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
    _, labels, _ = masking.encode(messages, tokenizer, Encoding(1000))
    return str(tokenizer.decode([label for label in labels if label != masking.IGNORED]))


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
    ids, _, _ = masking.encode(TALK, tokenizer, Encoding(1000))
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
    _, labels, _ = masking.encode(talk, tokenizer, Encoding(1000, unmask=True))
    assert tokenizer.decode([label for label in labels if label != masking.IGNORED]) == expected


def tokenise(tokenizer: Any, target: Path, max_seq_len: int = 1000) -> masking.Tokenised:
    """Tokenise the one conversation."""
    return masking.tokenise([(7, TALK)], tokenizer, Encoding(max_seq_len), target / "rows.parquet")


def test_a_template_without_an_end_of_the_turn_is_noticed(tokenizer: Any, tmp_path: Path) -> None:
    assert tokenise(tokenizer, tmp_path).endless_rows == 0
    assert tokenise(tokenizer, tmp_path, 40).endless_rows == 0, "a row that is cut has its own warning"
    tokenizer.chat_template = WITHOUT_END
    assert tokenise(tokenizer, tmp_path).endless_rows == 1


def test_a_row_that_ends_with_a_trained_prompt_has_no_end_to_learn(tokenizer: Any, tmp_path: Path) -> None:
    rows = [(1, TALK[:3])]
    assert masking.tokenise(rows, tokenizer, Encoding(1000, unmask=True), tmp_path / "rows.parquet").endless_rows == 0


def test_a_row_that_is_too_long_can_be_dropped_where_it_would_be_cut(tokenizer: Any, tmp_path: Path) -> None:
    encoding = Encoding(40, drop_longer=True)
    found = masking.tokenise([(7, TALK), (9, TALK[:2])], tokenizer, encoding, tmp_path / "rows.parquet")
    assert (found.rows, found.cut_rows) == (1, 0)
    assert found.dropped.describe() == "1 row: it is longer than training_max_seq_len=40 (line 7)"
    assert masking.marked(TALK, tokenizer, encoding).startswith("(dropped: it has ")


def test_a_template_that_refuses_a_row_is_quoted_and_the_row_is_not(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = REFUSING
    assert "(roles must alternate)" in tokenise(tokenizer, tmp_path).dropped.describe()
    tokenizer.chat_template = QUOTING
    said = tokenise(tokenizer, tmp_path).dropped.describe()
    assert "the model's chat template refuses it (" in said
    assert "Hi?" not in said


def test_a_sample_shows_the_trained_text_marked_and_ends_where_the_row_is_cut(tokenizer: Any) -> None:
    shown = masking.marked(TALK, tokenizer, Encoding(1000))
    assert "<|im_start|>assistant\n⟦Yes.  <|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>" in shown
    assert shown.count("⟦") == shown.count("⟧") == 2
    assert shown.replace("⟦", "").replace("⟧", "") == tokenizer.apply_chat_template(TALK, tokenize=False)
    cut = masking.marked(TALK[:2], tokenizer, Encoding(25))
    assert cut.endswith("assistant\n⟦Yes⟧… (cut)")
