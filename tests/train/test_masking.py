"""Which tokens are trained, seen through templates as models bring them along.

* the assistant's text with its spaces and the token that ends its turn, and nothing else
* templates that add a system prompt, strip text, or write no end of the turn
* tokenizers that would add a token of their own; text that looks like a special token
* samples show what is trained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner import masking
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
    _, labels, _ = masking.encode(messages, tokenizer, 1000)
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
    ids, _, _ = masking.encode(TALK, tokenizer, 1000)
    assert tokenizer.decode(ids[:3]).count("<|im_start|>") == 1


def tokenise(tokenizer: Any, target: Path, max_seq_len: int = 1000) -> masking.Tokenised:
    """Tokenise the one conversation."""
    return masking.tokenise([(7, TALK)], tokenizer, max_seq_len, target / "rows.parquet")


def test_a_template_without_an_end_of_the_turn_is_noticed(tokenizer: Any, tmp_path: Path) -> None:
    assert tokenise(tokenizer, tmp_path).endless_rows == 0
    assert tokenise(tokenizer, tmp_path, 40).endless_rows == 0, "a row that is cut has its own warning"
    tokenizer.chat_template = WITHOUT_END
    assert tokenise(tokenizer, tmp_path).endless_rows == 1


def test_a_template_that_refuses_a_row_is_quoted_and_the_row_is_not(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = REFUSING
    assert "(roles must alternate)" in tokenise(tokenizer, tmp_path).dropped.describe()
    tokenizer.chat_template = QUOTING
    said = tokenise(tokenizer, tmp_path).dropped.describe()
    assert "the model's chat template refuses it (" in said
    assert "Hi?" not in said


def test_a_sample_shows_the_trained_text_marked_and_ends_where_the_row_is_cut(tokenizer: Any) -> None:
    shown = masking.marked(TALK, tokenizer, 1000)
    assert "<|im_start|>assistant\n⟦Yes.  <|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>" in shown
    assert shown.count("⟦") == shown.count("⟧") == 2
    assert shown.replace("⟦", "").replace("⟧", "") == tokenizer.apply_chat_template(TALK, tokenize=False)
    cut = masking.marked(TALK[:2], tokenizer, 25)
    assert cut.endswith("assistant\n⟦Yes⟧… (cut)")
