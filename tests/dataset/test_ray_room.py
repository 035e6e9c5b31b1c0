"""How many workers there is room for, addresses, permits: what needs no cluster."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.class_table import ClassTable
from g4seg_trt.cluster.connection import Node, Room, connect, make_room
from g4seg_trt.cluster.permit import Permit
from g4seg_trt.cluster.refiner import RayRefiner
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import ClusterError, ConfigError, InputError
from g4seg_trt.postprocess import PostProcess, parse_post

MACHINES = [Node("a", 16, 0), Node("b", 6, 2), Node("c", 3, 1)]


@pytest.mark.parametrize(
    ("workers", "threads", "gpu", "room"),
    [
        (None, None, False, Room(8, 3, False)),  # 3 threads, for the smallest has no more: 5 + 2 + 1
        (None, 4, False, Room(5, 4, False)),
        (None, 1, False, Room(25, 1, False)),
        (2, 16, False, None),
        (1, 16, False, Room(1, 16, False)),
        (None, None, True, Room(3, 1, True)),
        (None, 4, True, Room(1, 4, True)),
        (4, None, True, None),
        (None, 17, False, None),
    ],
)
def test_as_many_workers_as_there_is_room_for(
    workers: int | None, threads: int | None, gpu: bool, room: Room | None
) -> None:
    if room is not None:
        assert make_room(MACHINES, workers, threads, gpu) == room
        return
    with pytest.raises(ClusterError, match=r"no room for .* the cluster has a 16 CPUs, 0 GPUs; b 6 CPUs, 2 GPUs"):
        make_room(MACHINES, workers, threads, gpu)


def test_large_machines_get_workers_of_four_threads() -> None:
    assert make_room([Node("a", 64, 0)], None, None, False) == Room(16, 4, False)


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (1, 0), (-1, None)])
def test_numbers_below_one_are_refused(workers: int, threads: int | None) -> None:
    with pytest.raises(ConfigError, match="allowed: 1 or more"):
        make_room(MACHINES, workers, threads, False)


def test_the_libraries_of_a_worker_take_its_threads() -> None:
    asked = Room(2, 3, True).resources()
    assert (asked["num_cpus"], asked["num_gpus"]) == (3, 1)
    assert set(asked["runtime_env"]["env_vars"].values()) == {"3"}


@pytest.mark.parametrize("address", ["", "host", "host:", "host:port", "http://host:1", "ray://host:10001", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed: auto, HOST:PORT"):
        connect(address)


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            ClusterError, match=rf"no Ray cluster can be joined at {address} \(.*ray start --head"
        ) as told:
            connect(address)
    assert "\n" not in str(told.value)


def test_ray_has_the_setting_that_keeps_workers_from_standing_still() -> None:
    data = pytest.importorskip("ray.data")
    # It is not documented, and one that is gone would be set without a word.
    assert data.DataContext.get_current()._max_num_blocks_in_streaming_gen_buffer > 0


def test_a_gpu_by_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="Ray gives each worker its own GPU"):
        RayRefiner.from_engine("tiny", device="cuda:1")


def test_without_ray_the_command_says_what_to_install(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    program = "import sys; sys.modules['ray'] = None; from g4seg_trt.cli.refine import main; sys.exit(main())"
    arguments = ["--engine", "tiny", "--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    arguments += ["--class-name", "disc", "--output", tmp_path / "out", "--ray"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "g4seg-refine: error: ray is not installed: pip install 'g4seg-trt[ray]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--workers", "2"], ["--ray", "--no-refine", "--post", "pamr"]])
def test_options_that_go_without_each_other(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from g4seg_trt.cli.refine import main

    with pytest.raises(SystemExit):
        main(["--engine", "tiny", "--images", "i", "--masks", "m", "--output", "o", *more])
    assert "--ray" in capsys.readouterr().err


def test_masks_of_all_images_in_one_file_travel_to_the_workers(tmp_path: Path) -> None:
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 24)).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 24, "width": 32})
        outline = [2, 3, 9 + number, 3, 9 + number, 11, 2, 11]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": [outline], "iscrowd": 0, "area": 56}
        )
    found = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "instances.json").write_text(json.dumps(found), encoding="ascii")
    table = ClassTable.of_dataset("coco-object")
    source = DatasetSource.from_folders(tmp_path / "images", tmp_path / "instances.json", table=table)
    travelled: DatasetSource = pickle.loads(pickle.dumps(source))
    for place in range(3):
        here, there = source.item(place).masks, travelled.item(place).masks
        assert not isinstance(here, InputError)
        assert not isinstance(there, InputError)
        assert there.digest() == here.digest()
        np.testing.assert_array_equal(there.read().probabilities, here.read().probabilities)


@pytest.mark.parametrize("name", ["pamr", "crf:irn,pamr"])
def test_post_processing_travels_to_the_workers(name: str) -> None:
    post: PostProcess = pickle.loads(pickle.dumps(parse_post(name)))
    assert post.name == parse_post(name).name


def test_a_permit_says_go_on_end_and_leave(tmp_path: Path) -> None:
    with Permit.issue(tmp_path) as permit:
        assert permit.is_valid()
        assert not permit.has_ended()
        permit.recall()
        assert permit.is_valid(), "what is in flight is written"
        assert permit.has_ended()
    assert not permit.is_valid()
    assert permit.has_ended()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_leaves_of_its_permit_is_cleared_away(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.records.mkdir()
    run = Permit.issue(layout.records)
    permit = run.__enter__()
    permit.attempt(0).__enter__()
    assert len(list(layout.records.iterdir())) == 2
    layout.remove_leftovers()
    assert permit.has_ended()
    assert not list(layout.records.iterdir())


def test_attempts_at_a_task_are_counted_until_one_ends(tmp_path: Path) -> None:
    with Permit.issue(tmp_path) as permit:
        for count in (1, 2, 3):  # as by workers that die: the block is never left
            assert permit.attempt(8).__enter__() == count
        with permit.attempt(16) as other:
            assert other == 1
        with permit.attempt(8) as last:
            assert last == 4
        with permit.attempt(8) as again:
            assert again == 1
