"""The Refiner: set an image once, refine the masks of as many classes as it has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, TypeVar

from g4seg_engine.manifest import Manifest, load_engine
from g4seg_trt.arrays import Array
from g4seg_trt.backends import Execution, choose, fingerprint_of, open_chain
from g4seg_trt.chain import Chain, EncodedImage
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.run import refine_into, refine_items
from g4seg_trt.dataset.settings import asked_for
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import ConfigError, G4SegError, ImageError
from g4seg_trt.postprocess import PostProcess
from g4seg_trt.preparation import Preparation, PreparedImage, prepare_image, prepare_masks
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refinement import KEEP, Refinement, assemble, check_keep
from g4seg_trt.run import Run, TextEmbeddings
from g4seg_trt.stream import Loaded, Stream, prefetched
from g4seg_trt.update import BackgroundRule

__all__ = ["EMBEDDED", "KEEP", "Refinement", "Refiner", "engine_directory"]

Key = TypeVar("Key")
Load: TypeAlias = Callable[[], Loaded]

EMBEDDED: Mapping[str, Path] = {"tiny": Path(__file__).parent / "assets" / "tiny"}
"""Engines that come with the package, by name."""


def engine_directory(engine: str | Path) -> Path:
    """The directory of an engine: its path, or the name of an embedded one ("./tiny" is a path)."""
    return EMBEDDED[engine] if isinstance(engine, str) and engine in EMBEDDED else Path(engine)


class Refiner:
    """Refines coarse masks of images with the networks of one engine.

    Use it as a context manager, or call `close`. One thread at a time.

        with Refiner.from_engine("tiny") as refiner:
            refiner.set_image(image)                       # uint8 RGB [H,W,3]
            refined = refiner.refine({"cat": probability})  # float [H,W] in [0,1]
            refined.probabilities["cat"]                   # float32 [H,W]

    Args:
        chain: the networks; closed with the Refiner.
        prompts: the engine's tokenizer.
        config: the settings unless a call brings its own.
        manifest: what the engine says about itself.
        execution: how it runs.
    """

    def __init__(
        self,
        chain: Chain,
        prompts: PromptEncoder,
        *,
        config: RefineConfig | None = None,
        manifest: Manifest | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.config = config if config is not None else RefineConfig()
        self._chain = chain
        self._prompts = prompts
        self._manifest = manifest
        self._execution = execution
        self._texts = TextEmbeddings(chain)
        self._current: tuple[PreparedImage, EncodedImage] | None = None

    @classmethod
    def from_engine(
        cls,
        engine: str | Path,
        *,
        backend: str = "onnxruntime",
        device: str | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
        compute_precision: str | None = None,
        low_memory: bool = False,
        cache: bool = True,
        config: RefineConfig | None = None,
        verify: bool = False,
    ) -> Refiner:
        """Open an engine directory.

        Args:
            engine: path of the directory, or "tiny" for the engine that comes with the package.
            backend: what runs the networks: "onnxruntime", "openvino", "tensorrt", or "auto" for the fastest that is
                installed and accurate enough (`execution` says which, and why).
            device: where: "cpu", "cuda" or "cuda:1" and so on; None for the backend's first choice.
            batch_size: (image, class) pairs in one run; None for 1 on a CPU, the largest that was built on a GPU.
            threads: CPU threads, or None for the backend's choice.
            compute_precision: "fp32" or "bf16" with openvino; None for the faster that this processor can do.
            low_memory: keep one network open at a time (on a CPU).
            cache: keep what makes the next start shorter in the engine directory (on a CPU).
            config: the settings; None takes the engine's recommended ones.
            verify: check the hash of every file, also of the large ones.

        Raises:
            EngineError: if the directory is missing, incomplete, or not what its manifest says.
            MissingExtraError: if the backend is not installed.
            ConfigError: if the backend, the device, the batch size or a recommended setting is not allowed.
        """
        directory = engine_directory(engine)
        manifest = load_engine(directory, verify=verify)
        if config is None:
            config = resolve_config(recommended=manifest.recommended)
        prompts = PromptEncoder.of_engine(directory, manifest)
        execution = choose(manifest, backend, device, compute_precision)
        chain = open_chain(
            directory,
            manifest,
            execution,
            batch_size=batch_size,
            threads=threads,
            low_memory=low_memory,
            cache=cache,
        )
        return cls(chain, prompts, config=config, manifest=manifest, execution=execution)

    @property
    def manifest(self) -> Manifest:
        """The engine's manifest."""
        if self._manifest is None:
            raise RuntimeError("this Refiner was made without an engine directory")
        return self._manifest

    @property
    def execution(self) -> Execution:
        """What runs the engine, where and in which precision."""
        if self._execution is None:
            raise RuntimeError("this Refiner was made without an engine directory")
        return self._execution

    @property
    def batch_size(self) -> int:
        """(image, class) pairs in one run."""
        return self._chain.batch_size

    def __enter__(self) -> Refiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine."""
        self._current = None
        self._chain.close()

    def wait_until_open(self) -> None:
        """Return when there is nothing left to load: networks are opened in the background, which this waits for.

        Raises:
            EngineError: if one cannot be opened.
        """
        self._chain.wait_until_open()

    def set_image(self, image: Array) -> None:
        """Encode an image; the next calls of `refine` are about it.

        Args:
            image: uint8 RGB [H,W,3], upright (g4seg_trt.load_image reads one from a file).

        Raises:
            ImageError: for anything else.
        """
        self._current = None
        prepared = prepare_image(image, self._chain.dims.square)
        encoded = self._chain.encode_image(prepared.pixels)
        prepared.timings.add(encoded.timings)
        self._current = prepared, encoded

    def refine(
        self,
        masks: Mapping[str, Array],
        *,
        background: BackgroundRule | str = "constant:0.5",
        config: RefineConfig | None = None,
        keep: Collection[str] = (),
    ) -> Refinement:
        """Refine masks of the current image, each by itself (all other classes are background to it).

        Args:
            masks: class name -> coarse probability [H,W] of the image's size: floating point in [0,1], bool,
                or integers 0 and 1.
            background: how the masks become labels, which decides where each class is injected: "constant:T",
                "power:P", or "channel". With "channel" the mask called "background" is the background's
                probability; it is not refined.
            config: settings for this call.
            keep: names from KEEP of what to hand out beside the probabilities.

        Raises:
            ImageError: if no image is set.
            ClassNameError: if a name is empty, yields no token or is too long.
            MaskError: if a mask has another size, or values that are no probabilities.
            ConfigError: for an unknown name in `keep`, a background rule that cannot be read, or "channel" without
                a mask called "background".
        """
        if self._current is None:
            raise ImageError("no image is set: call set_image first")
        image, encoded = self._current
        run = self._run(config, keep)
        preparation = self._prepare_masks(masks, image, run.config, BackgroundRule.of(background))
        pairs = run.pairs(encoded, preparation)
        results = dict(zip(pairs, run.refine(list(pairs.values())), strict=True))
        return assemble(preparation, results, run.config, image.timings)

    def refine_many(
        self,
        items: Iterable[tuple[Key, Load]],
        *,
        background: BackgroundRule | str = "constant:0.5",
        config: RefineConfig | None = None,
        keep: Collection[str] = (),
        prefetch: int = 2,
    ) -> Generator[tuple[Key, Refinement | G4SegError], None, None]:
        """Refine the masks of many images; the image of `set_image` is left alone.

        Loading, checks and resizing run ahead in a thread; pairs of several images share batches. Results are
        the same as one by one.

        Args:
            items: a key of any kind, and a function that returns the image (uint8 RGB [H,W,3]) and its masks
                (see `refine`), and as a third the background rule if this image has its own. It runs in the
                thread, so it should not touch what the caller touches.
            background: as in `refine`, for images without a rule of their own.
            config: settings for this call.
            keep: as in `refine`.
            prefetch: images to load ahead, 1 or more.

        Yields:
            Each key, in order, with its refinement, or with the user's error that loading or checking it
            raised; the others go on. Few images are held at a time.

        Raises:
            ConfigError: for an unknown name in `keep`, a background rule that cannot be read, or a prefetch below 1.
            EngineError: if a network fails; it ends the stream.
        """
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}, allowed: 1 or more")
        run = self._run(config, keep)
        rule = BackgroundRule.of(background)

        def prepare(loaded: Loaded) -> tuple[PreparedImage, Preparation]:
            image = prepare_image(loaded[0], self._chain.dims.square)
            own = loaded[2] if len(loaded) == 3 else rule
            return image, self._prepare_masks(loaded[1], image, run.config, own)

        def results() -> Generator[tuple[Key, Refinement | G4SegError], None, None]:
            stream: Stream[Key] = Stream(self._chain, run)
            with closing(prefetched(items, prepare, prefetch)) as prepared:
                yield from stream.refine(prepared)

        return results()

    def refine_dataset(
        self,
        source: DatasetSource,
        output: str | Path | None = None,
        *,
        background: BackgroundRule | str | None = None,
        config: RefineConfig | None = None,
        post: PostProcess | str | None = None,
        resume: bool = False,
        overlay: bool = False,
        matches: bool = False,
        shard: tuple[int, int] | None = None,
        limit: int | None = None,
        keep: Collection[str] = (),
        prefetch: int = 2,
    ) -> Generator[Result, None, None]:
        """Refine the masks of a data set, as the command does.

            source = DatasetSource.from_folders("images", "masks", class_name="cat")
            for result in refiner.refine_dataset(source, "refined", resume=True):
                print(result.stem, result.error or result.state)

        Args:
            source: the images and their masks.
            output: folder for the outputs and the records of what is done; None writes nothing. It is locked until
                the last result is taken or the iterator is closed: it belongs to one run at a time.
            background: the background rule of all images; None takes the masks' own, or else "constant:0.5".
            config: settings for this call.
            post: post-processing of the refined masks, or what `parse_post` takes for it, such as "crf:irn".
            resume: go on in a folder that holds results: images whose record says that image, masks, settings and
                engine are the same, and whose files are there, are skipped. Without it such a folder is refused.
            overlay: write pictures before | after.
            matches: write pictures of the matches.
            shard: (i, n) for every n-th image from the i-th on, i from 1; shards may share an output folder.
            limit: how many images at most. Masks that came in one file for all images are written as one file by a
                run without shard and limit.
            keep: as in `refine`.
            prefetch: images to load ahead, 1 or more.

        Yields:
            A Result for each image, in order, once its files are whole and recorded. What is wrong with one image is
            in its result; the others go on.

        Raises:
            ConfigError: for a setting that is not allowed, or what only concerns outputs without an output folder.
            MissingExtraError: if the post-processing needs a package that is not installed.
            OutputError: if the output folder cannot be written, belongs to another run, holds results, or a shard's run
                with other settings, without `resume`, or the disk is full (what was finished stays); if an output would
                take the place of an input.
            EngineError: if a network fails.
        """
        part = source.part(shard, limit)
        settings, options = asked_for(
            self.fingerprint(), source.table, config or self.config, background, post, keep=keep, prefetch=prefetch
        )
        if output is None:
            asked = {"resume": resume, "overlay": overlay, "matches": matches}
            if given := [name for name, wanted in asked.items() if wanted]:
                raise ConfigError(f"{', '.join(given)} without an output folder: nothing would be written; give one")
            return refine_items(self, part, settings, options)
        layout = Layout(Path(output), overlay, matches, source.keeps_names)
        return refine_into(partial(refine_items, self), part, settings, options, layout, resume=resume, shard=shard)

    def fingerprint(self) -> dict[str, str]:
        """What results depend on beside inputs and settings: see `fingerprint_of`."""
        return fingerprint_of(self._manifest, self._execution)

    def _run(self, config: RefineConfig | None, keep: Collection[str]) -> Run:
        return Run(self._chain, self._texts, config or self.config, check_keep(keep))

    def _prepare_masks(
        self, masks: Mapping[str, Array], image: PreparedImage, config: RefineConfig, rule: BackgroundRule
    ) -> Preparation:
        return prepare_masks(masks, image.size, self._prompts, self._chain.dims, config, rule)
