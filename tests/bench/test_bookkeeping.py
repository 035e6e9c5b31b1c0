"""The benchmark of what records cost and of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from g4seg_bench.bookkeeping import growth, main, recorded, timed, unrecorded, watched, write_many
from g4seg_engine.errors import G4SegError
from g4seg_trt.dataset.result import REFINED, SKIPPED
from g4seg_trt.refiner import Refiner

Record = Callable[..., dict[str, Any]]


def files(folder: Path) -> dict[str, bytes]:
    """What lies in the folders of outputs."""
    found = (path for path in folder.rglob("*.png"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_both_ways_write_the_same_and_only_one_keeps_records(tmp_path: Path, toy_engine: Path) -> None:
    source = write_many(tmp_path / "scenes", 53)
    assert len(source) == 53
    few = source.part(limit=5)
    with Refiner.from_engine(toy_engine) as refiner:
        bare = timed(lambda: unrecorded(refiner, few, tmp_path / "bare"), REFINED)
        whole = timed(lambda: recorded(refiner, few, tmp_path / "whole"), REFINED)
        again = timed(lambda: recorded(refiner, few, tmp_path / "whole"), SKIPPED)
        with pytest.raises(G4SegError, match="is skipped, expected refined"):
            timed(lambda: recorded(refiner, few, tmp_path / "whole"), REFINED)
    assert 0 < bare.compute < bare.total
    assert 0 < whole.compute < whole.total
    assert again.compute == 0 < again.total
    assert len(files(tmp_path / "bare")) == 15
    assert files(tmp_path / "bare") == files(tmp_path / "whole")
    assert not (tmp_path / "bare" / "records").exists()
    assert (tmp_path / "whole" / "records" / "all.jsonl").is_file()


def test_more_images_are_the_same_files_again(tmp_path: Path) -> None:
    source = write_many(tmp_path, 120)
    stems = [entry.stem for entry in source.entries]
    assert len(set(stems)) == 120
    by_content = {(tmp_path / "images" / f"{stem}.png").read_bytes() for stem in stems}
    assert len(by_content) == 50
    assert source.classes is not None
    first = stems[0]
    copies = [stem for stem in stems if stem.startswith(f"{first}_")]
    assert copies
    for copy in copies:
        assert source.classes[copy] == source.classes[first]
        assert (tmp_path / "masks" / f"{copy}.png").samefile(tmp_path / "masks" / f"{first}.png")


def test_growth_is_told_from_a_fifth_of_the_images_on() -> None:
    flat = [(images, 100.0 if images > 150 else 50.0) for images in range(10, 1001, 10)]
    assert growth(flat) == {"first_mb": 100.0, "last_mb": 100.0, "kb_an_image": pytest.approx(0), "peak_mb": 100.0}
    leaking = growth([(images, 100.0 + images / 1000) for images in range(10, 1001, 10)])
    assert leaking["kb_an_image"] == pytest.approx(1.0)
    assert leaking["last_mb"] > leaking["first_mb"]


def test_the_record_holds_what_is_printed(
    record_of: Record, toy_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--engine", toy_engine, "--count", 4, "--memory-count", 60, "--runs", 2)
    record = record_of(main, *arguments)
    assert (record["benchmark"], record["model"]) == ("bookkeeping", "toy")
    assert {name: len(runs) for name, runs in record["runs"].items()} == {"unrecorded": 2, "recorded": 2, "again": 2}
    memory = record["memory"]
    assert memory["count"] == 60
    assert all(10 < mb < 10_000 for _, mb in memory["seen"])
    assert [images for images, _ in memory["seen"]] == sorted(images for images, _ in memory["seen"])
    printed = capsys.readouterr().out
    assert f"overhead {record['overhead_percent']:.1f} % of compute" in printed
    assert f"peak {memory['growth']['peak_mb']:.0f} MB" in printed


def test_a_command_that_fails_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_many(tmp_path / "scenes", 2)
    with pytest.raises(G4SegError, match="g4seg-refine failed"):
        watched(str(tmp_path / "none"), tmp_path / "scenes", tmp_path / "refined", 2)
    assert "does not exist" in capfd.readouterr().err
