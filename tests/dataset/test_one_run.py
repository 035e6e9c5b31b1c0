"""One run for each output folder, shards of one number beside each other, all as real processes."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from g4seg_trt import OutputError
from g4seg_trt.dataset.folder import OutputFolder
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.lock import in_turn

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Make = Callable[[int], Dataset]
    Outputs = Callable[[Path], dict[str, bytes]]

needs_locks = pytest.mark.skipif(find_spec("fcntl") is None, reason="this system has no fcntl")


@contextmanager
def running(dataset: Dataset, *more: object) -> Iterator[subprocess.Popen[str]]:
    """A run that stands still after its first record; goes on and is waited for at the end."""
    process = dataset.start(*more)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.read_bytes().count(b"\n") > 1 for path in (dataset.output / "records").glob("*.jsonl")):
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)


@needs_locks
def test_a_second_run_is_refused_with_the_process_of_the_first(make: Make, outputs_of: Outputs, tmp_path: Path) -> None:
    dataset = make(12)
    with running(dataset) as first:
        for more in ((), ("--resume",), ("--resume", "--shard", "1/2")):
            second = dataset.refine(*more)
            assert second.returncode == 1
            assert second.stdout == ""
            assert len(second.stderr.splitlines()) == 1, second.stderr
            assert f"is being written by another run (process {first.pid}): wait until it ends" in second.stderr
    assert first.returncode == 0
    assert dataset.refine(output=tmp_path / "alone").returncode == 0
    assert outputs_of(dataset.output) == outputs_of(tmp_path / "alone"), "the refused ones changed nothing"
    assert dataset.refine("--resume").returncode == 0, "the lock is free again"


@needs_locks
def test_the_lock_of_a_killed_run_is_free(make: Make) -> None:
    dataset = make(12)
    with running(dataset) as first:
        first.kill()
    assert (dataset.output / ".lock").read_bytes(), "signed by the dead process"
    assert dataset.refine("--resume").returncode == 0


@needs_locks
def test_shards_share_a_folder_and_give_the_whole(make: Make, outputs_of: Outputs, tmp_path: Path) -> None:
    dataset = make(12)
    assert dataset.refine(output=tmp_path / "whole").returncode == 0
    with running(dataset, "--shard", "1/3"):
        beside = [dataset.start("--shard", f"{index}/3") for index in (2, 3)]
        same = dataset.refine("--shard", "1/3", "--resume")
        assert same.returncode == 1
        assert "is being written by another run (process " in same.stderr
        other = dataset.refine("--shard", "1/2", "--resume")
        assert other.returncode == 1
        assert "in 3 shards, this is one of 2" in other.stderr
        for process in beside:
            assert process.wait(60) == 0, process.communicate()
    assert outputs_of(dataset.output) == outputs_of(tmp_path / "whole")
    assert sorted(path.name for path in (dataset.output / "records").iterdir()) == [
        "1-of-3.jsonl",
        "2-of-3.jsonl",
        "3-of-3.jsonl",
    ]
    again = dataset.refine("--shard", "2/3")
    assert again.returncode == 1
    assert "go on with --resume" in again.stderr
    assert "12 images: 0 refined, 12 skipped" in dataset.refine("--resume").stdout
    assert "6 images: 0 refined, 6 skipped" in dataset.refine("--resume", "--shard", "2/2").stdout


@needs_locks
def test_shards_that_start_together_all_run(make: Make, outputs_of: Outputs) -> None:
    dataset = make(8)
    together = [dataset.start("--shard", f"{index}/4") for index in range(1, 5)]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in together]
    assert [end[2] for end in ends] == [0, 0, 0, 0], ends
    assert len(outputs_of(dataset.output)) == 24


def test_half_written_files_of_a_killed_run_are_removed_and_no_others(dataset: Dataset) -> None:
    assert dataset.refine("--limit", 2).returncode == 0
    ours = [dataset.output / folder / ".g4seg-0123456789abcdef.part" for folder in ("label", "probability", "records")]
    others = [dataset.output / "label" / ".g4seg-short.part", dataset.output / "label" / ".somebody.part"]
    others.append(dataset.output / ".g4seg-0123456789abcdef.part")
    for path in (*ours, *others):
        path.write_bytes(b"half")
    folder = dataset.output / "masks" / ".g4seg-0123456789abcdef.part"
    folder.mkdir()
    (folder / "disc.png").write_bytes(b"half")
    ours.append(folder)
    assert dataset.refine("--resume").returncode == 0
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_end_keeps_what_is_finished(make: Make, number: signal.Signals) -> None:
    dataset = make(40)
    with running(dataset) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = len(list((dataset.output / "label").iterdir()))
    assert 0 < done < 40
    assert f"40 images: {done} refined, 0 skipped (done before), 0 failed" in out
    assert err.splitlines()[-1].endswith(f"interrupted: {done} of 40 images are done, go on with --resume")
    assert f"{40 - done} refined, {done} skipped" in dataset.refine("--resume").stdout


@needs_locks
def test_a_shard_of_other_settings_is_refused_and_writes_nothing(make: Make, outputs_of: Outputs) -> None:
    dataset = make(12)
    refused = "holds a run of the shard 1/3 with other settings (beta 0.0, now 0.25): give all shards the same ones"
    with running(dataset, "--shard", "1/3"):
        before = outputs_of(dataset.output)
        beside = dataset.refine("--shard", "2/3", "--beta", 0.25)
        assert outputs_of(dataset.output) == before
        assert not (dataset.output / "records" / "2-of-3.jsonl").exists()
    after = dataset.refine("--shard", "2/3", "--beta", 0.25)
    for done in (beside, after):
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert refused in done.stderr
    assert dataset.refine("--shard", "2/3").returncode == 0, "the refused ones are forgotten"


@needs_locks
def test_a_shard_that_is_done_again_with_other_settings_says_that_the_others_are_not(
    make: Make, outputs_of: Outputs, tmp_path: Path
) -> None:
    dataset = make(9)
    for index in (1, 2, 3):
        assert dataset.refine("--shard", f"{index}/3").returncode == 0
    before, other = outputs_of(dataset.output), ("--certainty-filter", "0.1,0.9", "--resume")
    first = dataset.refine("--shard", "1/3", *other)
    assert first.returncode == 0
    assert "3 refined, 0 skipped" in first.stdout
    changes = "certainty_filter [0.3, 0.52], now [0.1, 0.9]"
    assert (
        f"settings changed ({changes}): images done with others are done again; those that this run leaves"
        in first.stderr
    )
    assert f"results of other shards (2/3, 3/3) are still of other settings ({changes}): run those" in first.stderr
    second = dataset.refine("--shard", "2/3", *other)
    assert f"settings changed ({changes})" in second.stderr, "also where the latest run was another shard's"
    assert f"results of other shards (3/3) are still of other settings ({changes})" in second.stderr
    last = dataset.refine("--shard", "3/3", *other)
    assert "of other shards" not in last.stderr
    assert dataset.refine(*other, output=tmp_path / "whole").returncode == 0
    assert outputs_of(dataset.output) == outputs_of(tmp_path / "whole") != before
    assert "settings changed" not in dataset.refine("--shard", "1/3", *other).stderr


@needs_locks
def test_of_shards_that_start_together_with_different_settings_one_runs(make: Make, outputs_of: Outputs) -> None:
    dataset = make(8)
    together = [dataset.start("--shard", f"{index}/2", "--beta", index / 10) for index in (1, 2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in together]
    assert sorted(end[1] for end in ends) == [0, 1], ends
    (refused,) = [end[0] for end in ends if end[1] == 1]
    assert "with other settings (beta 0." in refused
    assert len(outputs_of(dataset.output)) == 12


@needs_locks
def test_shards_look_at_one_another_before_they_begin(tmp_path: Path) -> None:
    layout, told = Layout(tmp_path), list[str]()
    layout.records.mkdir()

    def start() -> None:
        try:
            with OutputFolder.open(layout, {"beta": 2}, resume=False, shard=(2, 2)):
                told.append("begun")
        except OutputError as error:
            told.append(str(error))

    thread = threading.Thread(target=start)
    with in_turn(tmp_path, (1, 2)):
        thread.start()
        thread.join(0.5)
        assert told == [], "it waits while the other starts"
        (layout.records / "1-of-2.jsonl").write_text('{"run": 1, "settings": {"beta": 1}}\n')
    thread.join(60)
    assert len(told) == 1
    assert "the shard 1/2 with other settings (beta 1, now 2)" in told[0]
