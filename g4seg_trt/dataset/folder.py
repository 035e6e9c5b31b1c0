"""The output folder of a run: locked, checked and with its records open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.lock import Shard, check_free, in_turn, locked
from g4seg_trt.dataset.record import Records, has_runs, latest_settings
from g4seg_trt.dataset.settings import differences
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
        beside: the other shards whose latest run had other settings: "2/3" -> those settings.
    """

    layout: Layout
    records: Records
    beside: Mapping[str, Mapping[str, Any]]

    @classmethod
    @contextmanager
    def open(
        cls, layout: Layout, settings: Mapping[str, Any], *, resume: bool, shard: Shard | None
    ) -> Iterator[OutputFolder]:
        """Take an output folder and make what is missing of it; half-written files of a killed run are removed.

        Args:
            layout: where it is and what will be written.
            settings: those of the run.
            resume: whether it may hold results, and shards of other settings.
            shard: (i, n) for the i-th of n runs that share the folder.

        Raises:
            OutputError: if it cannot be written, another run has it, or it holds results, or a run of another shard
                with other settings, and `resume` is not set, or results that no record is about.
        """
        check_folder(layout.root)
        make_folders([layout.root])
        with locked(layout.root, shard, layout.remove_leftovers):
            _check_results(layout, resume, shard)
            make_folders([layout.records])
            others = _other_shards(layout, shard)
            with Records(layout.records, _records_name(shard), apart=others) as records:
                with in_turn(layout.root, shard):  # or two that start together would both find the other not there
                    others = _other_shards(layout, shard)
                    beside = {_shard_of(name): one for name, one in others.items() if one != settings}
                    if beside and not resume:
                        name, first = next(iter(beside.items()))
                        raise OutputError(
                            f"{layout.root} holds a run of the shard {name} with other settings "
                            f"({differences(first, settings)}): give all shards the same ones, or choose another "
                            "--output; with --resume this shard has its own"
                        )
                    records.begin(settings)
                make_folders(layout.folders())
                yield cls(layout, records, beside)


def check_output(layout: Layout, inputs: Iterable[Path], *, resume: bool, shard: Shard | None) -> None:
    """Check a folder before anything is loaded, and leave it as it is.

    Args:
        layout: the output folder.
        inputs: files that the run reads; none of them may be among the files that lie in the folder.
        resume: as for `OutputFolder.open`.
        shard: as for `OutputFolder.open`.

    Raises:
        OutputError: as `OutputFolder.open` and `check_inputs`.
    """
    for folder in [layout.root, *(layout.folders() if layout.root.is_dir() else [])]:
        check_folder(folder)
    check_inputs(layout, inputs)
    check_free(layout.root, shard)
    _check_results(layout, resume, shard)


def check_inputs(layout: Layout, inputs: Iterable[Path]) -> None:
    """Check that no output would take the place of an input; raises OutputError.

    Args:
        layout: the output folder.
        inputs: files that the run reads; none of them may be among the files that lie in the folder.
    """
    there = {identity(path): path for path in (*layout.results(), *layout.records.glob("*.jsonl"))}
    if there:
        for path in inputs:
            output = there.get(identity(path))
            if output is not None:
                raise OutputError(f"cannot write {output}: it is the input {path}; choose another --output")


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


def _other_shards(layout: Layout, shard: Shard | None) -> dict[str, Mapping[str, Any]]:
    """The settings of the latest runs of the shards beside this one, by the names of their records."""
    if shard is None:
        return {}
    found = latest_settings(layout.records, f"*-of-{shard[1]}")
    found.pop(_records_name(shard), None)
    return found


def _shard_of(name: str) -> str:
    return name.replace("-of-", "/")
