"""What all sides of a comparison share, and how each is opened, here or in a process of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from g4seg_bench.baseline import PYTORCH, BaselineSide, baseline_precision, baseline_source
from g4seg_bench.choices import BaselineChoice, Choice, EngineChoice
from g4seg_bench.sides import EngineSide, Side
from g4seg_engine.cuda_device import cuda_device
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_engine.runner import check_backend
from g4seg_trt.backends import choose
from g4seg_trt.refiner import engine_directory


@dataclass(frozen=True)
class Plan:
    """One side before it is opened.

    Attributes:
        chosen: as the command line has it.
        backend: what runs it.
        device: "cpu", "cuda" and so on.
        precision: what it computes in.
    """

    chosen: Choice
    backend: str
    device: str
    precision: str

    @property
    def name(self) -> str:
        """What the record calls this side."""
        return self.chosen.name

    @property
    def is_baseline(self) -> bool:
        """Whether PyTorch runs it."""
        return isinstance(self.chosen, BaselineChoice)

    @property
    def own_vae(self) -> bool:
        """Whether it has the model's own autoencoder, whatever replaces it in the engine."""
        return isinstance(self.chosen, BaselineChoice) and self.chosen.own_vae


@dataclass(frozen=True)
class Setup:
    """The same for every side.

    Attributes:
        engine: path of the directory, or the name of an embedded engine.
        model: where the baseline's weights are; None for what the engine was made from.
        vae: where the autoencoder is that the engine has in place of the model's own; None likewise.
        device: "cpu" or "cuda"; None for the backend's first.
        classes: masks of the image.
        batch_size: masks in one run of a network.
        threads: CPU threads of each side.
        low_memory: engines keep one network at a time.
    """

    engine: str
    model: str | None
    vae: str | None
    device: str | None
    classes: int
    batch_size: int
    threads: int
    low_memory: bool

    @classmethod
    def of(cls, options: argparse.Namespace, classes: int) -> Setup:
        """What a command line asks for, with the attributes' names, for a number of classes."""
        names = ("engine", "model", "vae", "device", "batch_size", "threads", "low_memory")
        return cls(classes=classes, **{name: getattr(options, name) for name in names})

    @cached_property
    def directory(self) -> Path:
        """Of the engine."""
        return engine_directory(self.engine)

    @cached_property
    def manifest(self) -> Manifest:
        """The engine's; the directory is checked when it is first asked for."""
        return load_engine(self.directory)

    def at(self, directory: Path) -> Setup:
        """The same for another engine directory."""
        return replace(self, engine=str(directory.resolve()))

    def plans(self, choices: Sequence[Choice]) -> list[Plan]:
        """Where each side runs, and in what; a baseline runs where the engines do.

        Raises:
            G4SegError: for an unknown backend or device, one that is not installed, a precision that it does not
                have, or sides on different devices.
        """
        engines = {one.name: self._engine_plan(one) for one in choices if isinstance(one, EngineChoice)}
        devices = list(dict.fromkeys(plan.device for plan in engines.values())) or [self.device or "cpu"]
        if len(devices) > 1:
            where = ", ".join(f"{plan.name} on {plan.device}" for plan in engines.values())
            raise G4SegError(f"{where}: sides are compared on one device, choose it with --device")
        return [
            Plan(one, PYTORCH, devices[0], baseline_precision(one, devices[0]))
            if isinstance(one, BaselineChoice)
            else engines[one.name]
            for one in choices
        ]

    def open(
        self, plan: Plan, *, batch_size: int | None = None, threads: int | None = None, cache: bool = True
    ) -> Side:
        """Open a side.

        Args:
            plan: from `plans`.
            batch_size: in place of the setup's.
            threads: in place of the setup's.
            cache: whether an engine uses its cache.

        Raises:
            G4SegError: as EngineSide, BaselineSide and baseline_source.
        """
        chosen, threads = plan.chosen, self.threads if threads is None else threads
        if isinstance(chosen, BaselineChoice):
            source = baseline_source(chosen, self.manifest, self.model, self.vae)
            return BaselineSide(chosen, source, self.directory, self.manifest, device=plan.device, threads=threads)
        return EngineSide(
            chosen,
            self.directory,
            device=plan.device,
            batch_size=self.batch_size if batch_size is None else batch_size,
            threads=threads,
            low_memory=self.low_memory,
            cache=cache,
        )

    def arguments(self, plan: Plan) -> list[str]:
        """The options of ``python -m g4seg_bench.cold`` for a side."""
        line = ["--engine", self.engine, "--side", plan.name, "--device", plan.device]
        line += ["--classes", str(self.classes), "--batch-size", str(self.batch_size), "--threads", str(self.threads)]
        line += ["--low-memory"] if self.low_memory else []
        for option, value in (("--model", self.model), ("--vae", self.vae)):
            line += [] if value is None else [option, value]
        return line

    def _engine_plan(self, chosen: EngineChoice) -> Plan:
        execution = choose(self.manifest, chosen.backend, self.device, chosen.compute_precision)
        if execution.device == "cpu":
            check_backend(execution.backend, "cpu", chosen.compute_precision)
        else:
            number = execution.device.partition(":")[2]
            cuda_device(int(number) if number else None)
        return Plan(chosen, execution.backend, execution.device, execution.compute_precision)
