"""The README's tables, made from records."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from g4seg_bench import readme
from g4seg_engine.errors import G4SegError
from tests.bench.latency_records import cells, latency_record, save

README = """# Title

<!-- table: latency from results/latency.json -->
| old |
<!-- end table -->
text
<!-- table: scaling from results/latency.json -->
<!-- end table -->
<!-- table: cold-start from results/latency.json -->
<!-- end table -->

  <!-- table: accuracy from results/accuracy.json -->
<!-- end table -->
<!-- table: vae-layouts from results/layouts.json -->
<!-- end table -->
<!-- table: int8 from results/int8.json -->
<!-- end table -->
<!-- table: baselines from results/baselines.json -->
<!-- end table -->
<!-- table: folder from results/folder.json -->
<!-- end table -->
<!-- table: ray-scaling from results/ray.json -->
<!-- end table -->
last line"""

ACCURACY: dict[str, Any] = {
    "benchmark": "accuracy",
    "eager": {"gain": 1.5, "gain_error": 0.3},
    "sides": {
        "openvino:bf16": {
            "labels_percent": 99.9512,
            "matches_percent": 94.26,
            "gain": 1.46,
            "gain_difference": -0.04,
            "gain_difference_error": 0.06,
            "accurate": True,
        }
    },
}
LAYOUTS: dict[str, Any] = {
    "benchmark": "vae layouts",
    "networks": {
        name: {
            "eager": {"median": 2.0, "ratio": 1.0, "difference": 0.0},
            "openvino": {"median": 0.5, "ratio": 4.0, "difference": 1.2e-2},
        }
        for name in ("vae_encoder", "vae_decoder")
    },
}
INT8: dict[str, Any] = {
    "benchmark": "int8",
    "networks": {
        "unet": {"seconds": {"fp32": 4.0, "int8": 1.25}, "relative_error": {"int8": 0.0228}, "unsafe": "it spreads"}
    },
    "masks": {"per network": {"unet": {"labels_percent": 99.912}}},
}

BASELINES: dict[str, Any] = {
    "benchmark": "baselines",
    "methods": {
        "coarse": {"all": {"after": 63.91, "gain": 0.0, "gain_error": 0.0, "worse_percent": 0.0}, "plain": {}},
        "G4Seg": {
            "all": {"after": 65.36, "gain": 1.456, "gain_error": 0.35, "worse_percent": 37.4},
            "plain": {"gain": 2.52},
        },
    },
}
FOLDER: dict[str, Any] = {
    "benchmark": "folder",
    "count": 50,
    "sizes": {
        "512": {
            "single": {"median": {"total": 4.0}},
            "folder": {"1": {"median": {"total": 2.5}, "ratio": 1.61}, "4": {"median": {"total": 2.0}, "ratio": 1.98}},
        }
    },
}
RAY: dict[str, Any] = {
    "benchmark": "ray-scaling",
    "sides": {"1 worker": {"median": {"images_per_s": 16.36, "compute_ms": 54.3, "computing_share": 0.914}}},
}
RECORDS = {
    "accuracy": ACCURACY,
    "layouts": LAYOUTS,
    "int8": INT8,
    "baselines": BASELINES,
    "folder": FOLDER,
    "ray": RAY,
}


@pytest.fixture
def readme_file(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    save(tmp_path / "results" / "latency.json", latency_record())
    for name, record in RECORDS.items():
        save(tmp_path / "results" / f"{name}.json", record)
    file = tmp_path / "README.md"
    file.write_text(README, encoding="utf-8")
    return file


def test_the_readme_s_tables_are_made_from_records(readme_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main(["--file", str(readme_file), "--check"]) == 1
    said = capsys.readouterr().err
    for name in readme.TABLES:
        assert f"README.md: the table {name} from results/" in said
    assert readme_file.read_text(encoding="utf-8") == README, "a check writes nothing"

    assert readme.main(["--file", str(readme_file)]) == 0
    text = readme_file.read_text(encoding="utf-8")
    rows = cells(text)
    assert ["old"] not in rows
    assert ["VAE decode", "5.93", "11.9", "17.8"] in rows
    assert ["batch size, s for each mask: 2", "", "45.0", ""] in rows
    assert ["openvino bf16", "first start", "3.00", "41.0 (40.0 to 42.0)"] in rows
    assert ["openvino:bf16", "99.951", "94.3", "+1.46", "-0.04 ± 0.06", "yes"] in rows
    assert ["openvino", "0.50", "4.00", "1e-02", "0.50", "4.00", "1e-02"] in rows
    assert ["unet (unsafe to compare)", "int8", "1.25", "2.3e-02", "99.91"] in rows
    assert ["coarse", "63.9", "", "", ""] in rows
    assert ["G4Seg", "65.4", "+1.46 ± 0.35", "+2.52", "37 %"] in rows
    assert ["512", "12.5", "20.0 (1.61 times)", "25.0 (1.98 times)"] in rows
    assert ["1 worker", "16.4", "54", "91 %"] in rows
    kept = [line for line in text.splitlines() if not line.startswith("|")]
    assert kept == [line for line in README.splitlines() if not line.startswith("|")]
    assert not text.endswith("\n"), "nothing outside the tables changes"
    capsys.readouterr()
    assert readme.main(["--file", str(readme_file), "--check"]) == 0
    assert capsys.readouterr().err == ""


def test_a_check_names_the_table_that_differs(readme_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main(["--file", str(readme_file)]) == 0
    text = readme_file.read_text(encoding="utf-8")
    readme_file.write_text(text.replace("99.951", "99.999"), encoding="utf-8")
    capsys.readouterr()
    assert readme.main(["--file", str(readme_file), "--check"]) == 1
    said = capsys.readouterr().err
    assert "the table accuracy from results/accuracy.json differs from its record" in said
    assert "latency" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: speed from a.json -->\n<!-- end table -->", "no table 'speed', expected latency, scaling"),
        ("<!-- table: latency from none.json -->\n<!-- end table -->", "none.json cannot be read"),
        ("<!-- table: latency from ../a.json -->\n<!-- end table -->", "lies outside the repository"),
        ("<!-- table: accuracy from results/latency.json -->\n<!-- end table -->", "none of the benchmark accuracy"),
        ("<!-- table: latency from a.json -->\n| a |", "is not closed"),
        ("<!-- table: latency from a.json -->\n" * 2 + "<!-- end table -->", "is not closed"),
        ("text\n<!-- end table -->", "has no partner"),
        ("<!-- table: latency -->\n<!-- end table -->", "has no partner"),
    ],
)
def test_bad_markers_change_nothing(
    readme_file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readme_file.write_text(text, encoding="utf-8")
    assert readme.main(["--file", str(readme_file)]) == 1
    assert said in capsys.readouterr().err
    assert readme_file.read_text(encoding="utf-8") == text


def test_records_without_the_figures_of_a_table(readme_file: Path) -> None:
    bare = latency_record() | {"scaling": None}
    for side in bare["sides"].values():
        side["cold_start"] = None
    file = save(readme_file.parent / "results" / "latency.json", bare)
    with pytest.raises(G4SegError, match="has no scaling"):
        readme.scaling(file)
    with pytest.raises(G4SegError, match="has no cold starts"):
        readme.cold_start(file)
    broken: dict[str, Any]
    for broken in ({"sides": 3}, {"sides": {"a": {}}}, {"sides": {"a": None}}):
        save(file, ACCURACY | broken)
        with pytest.raises(G4SegError, match="a figure is missing or none"):
            readme.accuracy(file)


def test_the_project_s_readme_agrees_with_its_records(tmp_path: Path) -> None:
    """On a copy; it may have no table yet."""
    root = Path(readme.__file__).parents[2]
    shutil.copytree(root / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    shutil.copy(root / "README.md", tmp_path)
    assert readme.main(["--file", str(tmp_path / "README.md"), "--check"]) == 0
