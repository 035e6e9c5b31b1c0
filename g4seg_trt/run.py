"""One run: prepared images and classes go through the chain with one set of settings."""

from __future__ import annotations

from collections.abc import Sequence

from g4seg_trt.chain import Chain, ClassMask, EncodedImage, Held
from g4seg_trt.config import RefineConfig
from g4seg_trt.injection import seeded_noise
from g4seg_trt.preparation import Preparation
from g4seg_trt.prompt import Prompt
from g4seg_trt.refinement import ClassResult, class_result
from g4seg_trt.timing import Timings

_KEPT_TEXTS = 512


class TextEmbeddings:
    """Text embeddings by class name; beyond 512 names the oldest are forgotten.

    Args:
        chain: encodes what is not there yet.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._kept: dict[str, Held] = {}

    def of(self, prompt: Prompt, timings: Timings) -> Held:
        """The prompt's embedding, [length,C]; adds the seconds that a new one takes."""
        if prompt.class_name not in self._kept:
            if len(self._kept) >= _KEPT_TEXTS:
                del self._kept[next(iter(self._kept))]
            self._kept[prompt.class_name] = self._chain.encode_text(prompt.input_ids, timings)
        return self._kept[prompt.class_name]


class Run:
    """Settings and networks of one run.

    Args:
        chain: the networks.
        texts: embeddings that outlive the run.
        config: the settings.
        keep: names from refinement.KEEP.
    """

    def __init__(self, chain: Chain, texts: TextEmbeddings, config: RefineConfig, keep: frozenset[str]) -> None:
        self.config = config
        self.batch_size = chain.batch_size
        self._chain = chain
        self._texts = texts
        self._keep = keep
        dims = chain.dims
        self._noise = seeded_noise(config.seed, (dims.latent_channels, dims.latent_size, dims.latent_size))

    def needed(self, preparation: Preparation) -> bool:
        """Whether any class has to go through the networks."""
        return bool(self._keep) or any(not one.still for one in preparation.classes)

    def pairs(self, encoded: EncodedImage, preparation: Preparation) -> dict[str, ClassMask]:
        """One image's pairs by class name, without classes that cannot change (unless something is kept)."""
        chosen = [one for one in preparation.classes if self._keep or not one.still]
        embeddings = [self._texts.of(one.prompt, preparation.timings) for one in chosen]
        return {
            one.name: ClassMask(
                encoded, embedding, one.prompt.token_mask, one.mask, one.square, self._noise, one.searched
            )
            for one, embedding in zip(chosen, embeddings, strict=True)
        }

    def refine(self, pairs: Sequence[ClassMask]) -> list[ClassResult]:
        """Refine any number of pairs, in batches."""
        results: list[ClassResult] = []
        for start in range(0, len(pairs), self.batch_size):
            batch = self._chain.refine_batch(pairs[start : start + self.batch_size], self.config)
            results += [class_result(refined, self._keep) for refined in batch]
        return results
