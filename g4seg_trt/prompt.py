"""Class name -> the token ids of its prompt, and which of them are the class name."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers import __version__ as tokenizers_version

from g4seg_engine.manifest import Manifest
from g4seg_trt.arrays import Floats, Ints
from g4seg_trt.errors import ClassNameError, EngineError

PREFIX = "a photo of"


@dataclass(frozen=True)
class Prompt:
    """One tokenised prompt.

    Attributes:
        class_name: the name as it stands in the prompt.
        input_ids: int64 [length]: BOS, the tokens, EOS, padding.
        token_mask: float32 [length]: 1 where a token belongs to the class name, else 0.
    """

    class_name: str
    input_ids: Ints
    token_mask: Floats


class PromptEncoder:
    """Makes prompts with an engine's tokenizer.

    Args:
        tokenizer_path: a tokenizer.json of the `tokenizers` library.
        bos: id that opens every prompt.
        eos: id that closes it.
        pad: id that fills it up.
        length: positions in all (77 for Stable Diffusion).

    Raises:
        EngineError: if the file cannot be read, or is no tokenizer that the installed `tokenizers` knows.
    """

    def __init__(self, tokenizer_path: str | PathLike[str], *, bos: int, eos: int, pad: int, length: int) -> None:
        try:
            text = Path(tokenizer_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"{tokenizer_path}: cannot be read: {error}") from error
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises the base class itself
            raise EngineError(
                f"{tokenizer_path}: the installed tokenizers {tokenizers_version} cannot read it ({error}): "
                "upgrade tokenizers, or build the engine again"
            ) from error
        # A class called "<|endoftext|>" is text like any other.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._bos, self._eos, self._pad, self._length = bos, eos, pad, length
        self._prefix = self._ids(PREFIX)

    @classmethod
    def of_engine(cls, directory: Path, manifest: Manifest) -> PromptEncoder:
        """With the tokenizer of an engine directory; raises as the constructor."""
        record, length = manifest.tokenizer, manifest.dims.text_length
        return cls(directory / record.file, bos=record.bos, eos=record.eos, pad=record.pad, length=length)

    def encode(self, class_name: str) -> Prompt:
        """The prompt "a photo of CLASS". White space around and inside the name is reduced to single spaces.

        The class starts after as many tokens as the prefix has: searching for its ids would find the prefix
        itself for a class like "photo".

        Raises:
            ClassNameError: if the name is empty, yields no token, is longer than the prompt, or is not text.
        """
        name = check_class_name(class_name)
        ids = self._ids(f"{PREFIX} {name}")
        start = len(self._prefix)
        if len(ids) <= start:
            raise ClassNameError(f"class name {class_name!r} yields no token; choose another word for it")
        if ids[:start] != self._prefix:
            raise ClassNameError(f"class name {class_name!r} cannot be told apart from the prompt before it")
        room = self._length - start - 2
        if len(ids) - start > room:
            raise ClassNameError(
                f"class name {_shortened(name)!r} has {len(ids) - start} tokens, the prompt holds {room}"
            )
        input_ids = np.full(self._length, self._pad, dtype=np.int64)
        input_ids[: len(ids) + 2] = [self._bos, *ids, self._eos]
        token_mask = np.zeros(self._length, dtype=np.float32)
        token_mask[start + 1 : len(ids) + 1] = 1.0
        return Prompt(name, input_ids, token_mask)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def check_class_name(class_name: str) -> str:
    """The name with single spaces between its words.

    Raises:
        ClassNameError: if it is no text, empty, or only white space.
    """
    if not isinstance(class_name, str):
        raise ClassNameError(f"class name {class_name!r} is a {type(class_name).__name__}, expected text")
    name = " ".join(class_name.split())
    if not name:
        raise ClassNameError(f"class name {class_name!r} is empty, expected a word such as 'cat'")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ClassNameError(f"class name {class_name!r} holds characters that are not valid Unicode") from error
    return name


def _shortened(name: str, length: int = 40) -> str:
    return name if len(name) <= length else name[: length - 3] + "..."
