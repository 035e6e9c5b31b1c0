"""A compiler's artefacts as a part of the exported engine."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from g4seg_engine.build import record_file
from g4seg_engine.compilation import TensorRTCompiler
from g4seg_engine.errors import EngineError, MissingExtraError
from g4seg_engine.manifest import ArtefactRecord, Manifest, load_engine
from g4seg_engine.spec import NETWORKS
from g4seg_export.engine import export_engine


class Compiling:
    """Writes one small file and notes what it was called with."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.checked = 0
        self.found: tuple[str, ...] = ()

    @property
    def options(self) -> Mapping[str, str | None]:
        return {"--backend": "pocket", "--batch-sizes": "1,2", "--workspace": None}

    def check(self) -> None:
        self.checked += 1

    def compile(self, directory: Path, manifest: Manifest) -> tuple[ArtefactRecord, ...]:
        self.found = tuple(name for name in NETWORKS if (directory / manifest.networks[name].files[0].file).is_file())
        (directory / "pocket").mkdir()
        file = directory / "pocket" / "unet.plan"
        file.write_bytes(b"plan")
        if self.error is not None:
            raise self.error
        record = record_file(file, directory)
        return (ArtefactRecord("unet", "pocket", (record,), "1.0", "a GPU", "9.0", "1", (1, 2), {"level": 3}),)


def test_artefacts_are_a_part_of_the_engine(model_folder: Path, tmp_path: Path) -> None:
    compiler = Compiling()
    output = tmp_path / "engine"
    export_engine(str(model_folder), output, progress=False, compiler=compiler)
    assert compiler.checked == 1
    assert compiler.found == NETWORKS
    manifest = load_engine(output, verify=True)
    (artefact,) = manifest.artefacts
    assert (artefact.backend, artefact.batch_sizes) == ("pocket", (1, 2))
    words = shlex.split(manifest.build_command)
    assert words[words.index("--backend") + 1] == "pocket"
    assert words[words.index("--batch-sizes") + 1] == "1,2"
    assert "--workspace" not in words


def test_a_compiler_that_fails_leaves_the_engine_that_was_there(
    model_folder: Path, engine: tuple[Path, Manifest], tmp_path: Path
) -> None:
    output = tmp_path / "engine"
    shutil.copytree(engine[0], output)
    before = {file: file.read_bytes() for file in output.iterdir()}
    failing = Compiling(EngineError("out of memory"))
    with pytest.raises(EngineError, match="out of memory"):
        export_engine(str(model_folder), output, progress=False, overwrite=True, compiler=failing)
    assert {file: file.read_bytes() for file in output.iterdir()} == before
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_missing_is_said_before_the_export(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"tensorrt is not installed: pip install 'g4seg-trt\[tensorrt\]'"):
        export_engine(str(model_folder), tmp_path / "engine", progress=False, compiler=TensorRTCompiler())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [(), (0,), (1, 1), (2, 1000)])
def test_batch_sizes_that_cannot_be(sizes: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="batch sizes are"):
        TensorRTCompiler(sizes)


def test_the_options_say_how_to_do_it_again() -> None:
    compiler = TensorRTCompiler((1, 4), workspace_gb=2.5, optimization_level=4, timing_cache=Path("times"))
    assert compiler.options == {
        "--backend": "tensorrt",
        "--batch-sizes": "1,4",
        "--workspace": "2.5",
        "--optimization-level": "4",
        "--timing-cache": "times",
    }
