"""Training end to end, a few steps long; what it learns is measured by the quality benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from g4seg_export.tiny import loop, pool, train

SHORT = {
    "vae": loop.Stage(2, 2, 1e-3),
    "text": loop.Stage(2, 2, 1e-3),
    "encoder": loop.Stage(2, 2, 1e-3),
    "decoder": loop.Stage(2, 2, 1e-3),
    "unet": loop.Stage(3, 2, 1e-3),
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "STAGES", SHORT)
    monkeypatch.setattr(pool, "POOL", 6)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.parent.name}/{k}": v for f in files for k, v in load_file(f).items()}


@pytest.mark.usefixtures("short")
def test_one_command_trains_and_writes_the_weights_folder(tmp_path: Path) -> None:
    output = tmp_path / "weights"
    output.mkdir()
    (output / "g4seg.json").write_text(json.dumps({"recommended": {"beta": 0.5}}))
    assert train.main(["--work", str(tmp_path / "work"), "--output", str(output), "--threads", "1"]) == 0
    weights = _weights(output)
    assert {k.split("/")[0] for k in weights} == {"vae", "unet", "text_encoder", "image_encoder"}
    assert all(v.dtype == torch.float16 for v in weights.values() if v.is_floating_point())
    assert all(torch.isfinite(v).all() for v in weights.values())
    settings = json.loads((output / "g4seg.json").read_text())
    assert settings["recommended"] == {"beta": 0.5}, "tuned settings survive a new training"
    assert settings["square"] == 64
    assert (output / "tokenizer.json").is_file()
    assert json.loads((output / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"


@pytest.mark.usefixtures("short")
def test_interrupted_and_resumed_equals_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def text_stage(work: Path) -> dict[str, torch.Tensor]:
        train.main(["--work", str(work), "--stage", "text", "--threads", "1"])
        state: dict[str, torch.Tensor] = torch.load(work / "text.pt", weights_only=True)["modules"]
        return state

    undisturbed = text_stage(tmp_path / "one")
    # Save after every step, then die after the first.
    original = pool.Scenes.batch
    calls = 0

    def dying(self: pool.Scenes, generator: torch.Generator, count: int) -> pool.Batch:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, generator, count)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(pool.Scenes, "batch", dying)
        with pytest.raises(KeyboardInterrupt):
            text_stage(tmp_path / "two")
    assert torch.load(tmp_path / "two" / "text.pt", weights_only=True)["step"] == 1
    resumed = text_stage(tmp_path / "two")
    for name, value in undisturbed.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
