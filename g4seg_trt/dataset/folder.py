"""The output folder of a run: locked, checked and with its records open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.lock import Shard, check_free, locked
from g4seg_trt.dataset.record import Records, has_runs
from g4seg_trt.errors import OutputError
from g4seg_trt.outputs import check_folder, identity, make_folders

ALL = "all"
"""The records of a run that is no shard."""


@dataclass(frozen=True)
class OutputFolder:
    """An output folder that is ours.

    Attributes:
        layout: its files.
        records: what is done.
    """

    layout: Layout
    records: Records

    @classmethod
    @contextmanager
    def open(
        cls, layout: Layout, settings: Mapping[str, Any], *, resume: bool, shard: Shard | None
    ) -> Iterator[OutputFolder]:
        """Take an output folder and make what is missing of it; half-written files of a killed run are removed.

        Args:
            layout: where it is and what will be written.
            settings: those of the run.
            resume: whether it may hold results.
            shard: (i, n) for the i-th of n runs that share the folder.

        Raises:
            OutputError: if it cannot be written, another run has it, or it holds results and `resume` is not set, or
                results that no record is about.
        """
        check_folder(layout.root)
        make_folders([layout.root])
        with locked(layout.root, shard, layout.remove_leftovers):
            _check_results(layout, resume, shard)
            make_folders([*layout.folders(), layout.records])
            with Records(layout.records, _records_name(shard), settings) as records:
                yield cls(layout, records)


def check_output(layout: Layout, inputs: Iterable[Path], *, resume: bool, shard: Shard | None) -> None:
    """Check a folder before anything is loaded, and leave it as it is.

    Args:
        layout: the output folder.
        inputs: files that the run reads; none of them may be among the files that lie in the folder.
        resume: as for `OutputFolder.open`.
        shard: as for `OutputFolder.open`.

    Raises:
        OutputError: as `OutputFolder.open`, and if an output would take the place of an input.
    """
    for folder in [layout.root, *(layout.folders() if layout.root.is_dir() else [])]:
        check_folder(folder)
    there = {identity(path): path for path in (*layout.results(), *layout.records.glob("*.jsonl"))}
    if there:
        for path in inputs:
            output = there.get(identity(path))
            if output is not None:
                raise OutputError(f"cannot write {output}: it is the input {path}; choose another --output")
    check_free(layout.root, shard)
    _check_results(layout, resume, shard)


def _check_results(layout: Layout, resume: bool, shard: Shard | None) -> None:
    if shard is None:
        recorded = has_runs(layout.records)
        taken = recorded or any(True for _ in layout.results())
    else:
        # The other shards' results are no reason to refuse this one.
        beside = has_runs(layout.records, f"*-of-{shard[1]}")
        recorded = beside or has_runs(layout.records)
        alien = has_runs(layout.records, ALL) or not beside
        taken = has_runs(layout.records, _records_name(shard)) or (alien and any(True for _ in layout.results()))
    if taken and not recorded:
        raise OutputError(f"{layout.root} holds results and no records to go on from: choose another --output")
    if taken and not resume:
        raise OutputError(
            f"{layout.root} holds results of an earlier run: go on with --resume, or choose another --output"
        )


def _records_name(shard: Shard | None) -> str:
    return ALL if shard is None else f"{shard[0]}-of-{shard[1]}"
