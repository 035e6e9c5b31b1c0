"""Prompts: the class name's token positions, for any name a user can type."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel

from g4seg_trt.errors import ClassNameError, EngineError
from g4seg_trt.prompt import PromptEncoder

BOS, EOS, PAD, LENGTH = 900, 901, 7, 77


def encoder(tokenizer: Tokenizer, folder: Path, length: int = LENGTH) -> PromptEncoder:
    tokenizer.save(str(folder / "tokenizer.json"))
    return PromptEncoder(folder / "tokenizer.json", bos=BOS, eos=EOS, pad=PAD, length=length)


@pytest.fixture(scope="session")
def clip(clip_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    return encoder(clip_like, tmp_path_factory.mktemp("clip"))


def check(encoder: PromptEncoder, tokenizer: Tokenizer, name: str, *, alone: str | None = None) -> None:
    """The prompt is BOS, prefix, name, EOS, padding, and the token mask covers the name and nothing else."""
    prompt = encoder.encode(name)
    before = tokenizer.encode("a photo of", add_special_tokens=False).ids
    of_name = tokenizer.encode(name if alone is None else alone, add_special_tokens=False).ids
    expected = [BOS, *before, *of_name, EOS]
    assert prompt.input_ids.dtype == np.int64
    assert prompt.token_mask.dtype == np.float32
    assert prompt.input_ids.tolist() == expected + [PAD] * (LENGTH - len(expected))
    mask = [0.0] * (1 + len(before)) + [1.0] * len(of_name)
    assert prompt.token_mask.tolist() == mask + [0.0] * (LENGTH - len(mask))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "cat",
            "photo",
            "a",
            "of",
            "a photo of",
            "photo of a photo",
            "tv monitor",
            "potted plant",
            "o'clock",
        ),
        *("'s", "3 of 4", "CAT", "naïve", "chien à poil", "犬", "собака", "🐈\u200d⬛", "!", "x" * 40),
        "<|endoftext|>",
    ],
)
def test_all_pieces_of_the_name_are_marked(clip: PromptEncoder, clip_like: Tokenizer, name: str) -> None:
    clip_like.encode_special_tokens = True
    check(clip, clip_like, name)


def test_a_special_token_in_a_name_is_text(clip: PromptEncoder) -> None:
    prompt = clip.encode("<|endoftext|>")
    assert (prompt.input_ids == EOS).sum() == 1
    assert prompt.token_mask.sum() == len("<|endoftext|>")


def test_every_printable_character_has_its_place(clip: PromptEncoder, clip_like: Tokenizer) -> None:
    before = len(clip_like.encode("a photo of", add_special_tokens=False).ids)
    for point in range(sys.maxunicode + 1):
        if chr(point).isprintable() and not chr(point).isspace():
            prompt = clip.encode(chr(point))
            marked = int(prompt.token_mask.sum())
            assert marked >= 1, hex(point)
            assert prompt.token_mask[before + 1 : before + 1 + marked].all(), hex(point)
            assert prompt.input_ids[before + 1 + marked] == EOS, hex(point)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_any_text_is_a_name_or_a_typed_error(clip: PromptEncoder, name: str) -> None:
    try:
        prompt = clip.encode(name)
    except ClassNameError as error:
        assert "\n" not in str(error)
        assert not name.split() or len(name.encode()) > 20
        return
    first = int(prompt.token_mask.argmax())
    assert prompt.token_mask[first : first + int(prompt.token_mask.sum())].all()
    assert prompt.input_ids[first + int(prompt.token_mask.sum())] == EOS


def test_white_space_does_not_matter(clip: PromptEncoder) -> None:
    tidy, untidy = clip.encode("tv monitor"), clip.encode("  tv \t\n monitor ")
    assert untidy.class_name == "tv monitor"
    assert np.array_equal(tidy.input_ids, untidy.input_ids)


def test_a_tokenizer_that_puts_the_space_into_the_word(tmp_path: Path) -> None:
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {"Ġc": 300, "Ġp": 301}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[("Ġ", "c"), ("Ġ", "p")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    for name in ("cat", "photo", "a", "tv monitor"):
        check(encoder(tokenizer, tmp_path), tokenizer, name, alone=f" {name}")


@pytest.mark.parametrize("name", ["", " ", "\t\n", "\u3000"])
def test_an_empty_name_is_refused(clip: PromptEncoder, name: str) -> None:
    with pytest.raises(ClassNameError, match="empty"):
        clip.encode(name)


def test_a_name_without_tokens_is_refused(clip_like: Tokenizer, tmp_path: Path) -> None:
    deaf = Tokenizer.from_str(clip_like.to_str())
    deaf.normalizer = Replace("☃", "")
    with pytest.raises(ClassNameError, match="'☃' yields no token"):
        encoder(deaf, tmp_path).encode("☃")


def test_a_name_that_changes_the_prefix_is_refused(clip_like: Tokenizer, tmp_path: Path) -> None:
    swapping = Tokenizer.from_str(clip_like.to_str())
    swapping.normalizer = Replace("photo of snow", "drift of snow")
    with pytest.raises(ClassNameError, match="'snow' cannot be told apart"):
        encoder(swapping, tmp_path).encode("snow")


def test_the_longest_name_that_fits_and_one_more(clip: PromptEncoder, clip_like: Tokenizer) -> None:
    room = LENGTH - 2 - len(clip_like.encode("a photo of", add_special_tokens=False).ids)
    prompt = clip.encode("z" * room)
    assert prompt.token_mask.sum() == room
    assert prompt.input_ids[-1] == EOS
    with pytest.raises(ClassNameError, match=rf"{room + 1} tokens, the prompt holds {room}") as caught:
        clip.encode("z" * (room + 1))
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("name", [None, 3, b"cat"])
def test_a_name_that_is_no_text_is_refused(clip: PromptEncoder, name: object) -> None:
    with pytest.raises(ClassNameError, match="expected text"):
        clip.encode(name)  # type: ignore[arg-type]


def test_a_name_that_utf_8_cannot_hold_is_refused(clip: PromptEncoder) -> None:
    with pytest.raises(ClassNameError, match="Unicode") as caught:
        clip.encode("cat\udce9")
    str(caught.value).encode()


def test_padding_and_truncation_of_the_file_are_not_used(clip_like: Tokenizer, tmp_path: Path) -> None:
    loud = Tokenizer.from_str(clip_like.to_str())
    loud.enable_padding(length=50)
    loud.enable_truncation(3)
    check(encoder(loud, tmp_path), clip_like, "zebra crossing")


def test_a_missing_tokenizer_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        PromptEncoder(tmp_path / "tokenizer.json", bos=BOS, eos=EOS, pad=PAD, length=LENGTH)


def test_a_tokenizer_of_an_unknown_kind_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "model": {"type": "Unknown"}}', encoding="utf-8")
    with pytest.raises(EngineError, match=r"tokenizer\.json: the installed tokenizers .* upgrade") as caught:
        PromptEncoder(path, bos=BOS, eos=EOS, pad=PAD, length=LENGTH)
    assert "\n" not in str(caught.value)
