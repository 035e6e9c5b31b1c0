"""The miniature model's tokenizer: byte-level BPE laid out like CLIP's, so that every word has tokens.

Vocabulary, in CLIP's order: the 256 byte symbols, the same with the end-of-word mark, the merges, BOS, EOS. Padding is
id 0, as in SD2.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreSequence

from g4seg_export.tiny.scenes import CLASS_NAMES

END_OF_WORD = "</w>"
BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
_WORD_LIST = """
a an the photo of picture image and with on in person people man woman child bird cat dog cow horse sheep elephant bear
zebra giraffe aeroplane airplane bicycle bike boat bus car motorbike motorcycle train truck traffic light bottle chair
dining table potted plant sofa couch tv monitor laptop phone cup fork knife spoon bowl banana apple orange tree grass
sky water sand snow road building wall floor ceiling door window mountain river sea flower leaf house ground ball box
circle round shape red blue green yellow black white grey small large
"""
_WORDS = _WORD_LIST.split()


def train_tokenizer() -> Tokenizer:
    """The tokenizer; deterministic: each known word in turn gets the merges that make it one token.

    (A trainer that counts pairs breaks ties differently from run to run.)
    """
    alphabet = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for word in dict.fromkeys([*_WORDS, *CLASS_NAMES]):
        parts = _apply(ranks, [*word[:-1], word[-1] + END_OF_WORD])
        while len(parts) > 1:
            ranks[parts[0], parts[1]] = len(merges)
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    symbols = dict.fromkeys([*alphabet, *[c + END_OF_WORD for c in alphabet], *[a + b for a, b in merges]])
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, BOS_TOKEN, EOS_TOKEN])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    # CLIP's word pattern: contractions, runs of letters, single digits, runs of anything else.
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = PreSequence(
        [Split(pattern, behavior="removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _apply(ranks: dict[tuple[str, str], int], parts: list[str]) -> list[str]:
    """Byte-pair encoding of one word with the merges so far: the lowest rank first, everywhere."""
    while True:
        pairs = {pair: ranks[pair] for pair in itertools.pairwise(parts) if pair in ranks}
        if not pairs:
            return parts
        first, second = min(pairs, key=pairs.__getitem__)
        joined: list[str] = []
        for part in parts:
            if joined and joined[-1] == first and part == second:
                joined[-1] = first + second
            else:
                joined.append(part)
        parts = joined


def write_tokenizer(path: Path) -> Tokenizer:
    tokenizer = train_tokenizer()
    path.write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    return tokenizer
