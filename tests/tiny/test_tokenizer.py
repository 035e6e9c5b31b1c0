from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from g4seg_export.tiny import tokenizer as tiny_tokenizer
from g4seg_export.tiny.scenes import CLASS_NAMES
from g4seg_export.tiny.train import WEIGHTS

TOKENIZER = tiny_tokenizer.train_tokenizer()


@given(st.text(min_size=1, max_size=30))
def test_every_visible_text_has_tokens_and_none_is_unknown(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert all(0 <= i < TOKENIZER.get_vocab_size() - 2 for i in ids), "a text never yields BOS or EOS"
    if text.strip() and any(c.isalnum() for c in text):
        assert ids


def test_class_names_are_single_tokens_and_case_does_not_matter() -> None:
    for name in CLASS_NAMES:
        assert len(TOKENIZER.encode(name, add_special_tokens=False).ids) == 1
        assert TOKENIZER.encode(name.upper()).ids == TOKENIZER.encode(name).ids


def test_the_kept_file_is_what_the_code_makes(tmp_path: Path) -> None:
    tiny_tokenizer.write_tokenizer(tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == (WEIGHTS / "tokenizer.json").read_bytes()


def test_layout_is_clips() -> None:
    vocabulary = TOKENIZER.get_vocab()
    assert vocabulary["!"] == 0, "padding is id 0, as in SD2"
    assert vocabulary[tiny_tokenizer.EOS_TOKEN] == len(vocabulary) - 1
    assert vocabulary[tiny_tokenizer.BOS_TOKEN] == len(vocabulary) - 2
    assert isinstance(TOKENIZER, Tokenizer)
