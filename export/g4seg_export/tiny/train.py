"""Trains the miniature model on synthetic scenes: ``python -m g4seg_export.tiny.train --work DIR``.

Four stages, each seeded and resumable (a checkpoint every minute): ``vae``; ``text`` (image and text encoder together,
contrastive); ``encoder`` (the image encoder goes on against the finished texts, on portraits too); ``unet`` (one-step
denoising, conditioned on the caption of one object). Captions are all the supervision: no stage sees a mask. Stages
that do not need each other may run side by side (``--stage vae`` and ``--stage text``, then ``encoder`` and ``unet``).
``--stage all`` writes the weights folder in diffusers' layout, half precision, that ``--model tiny`` exports;
``--stage write`` does that alone, from finished stages.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from g4seg_export.tiny import model as tiny
from g4seg_export.tiny.scenes import CLASS_NAMES, KINDS, NOTE, SIZE, Scene, make_portrait, make_scene
from g4seg_export.tiny.tokenizer import train_tokenizer, write_tokenizer

TEMPLATES = ("a photo of {}", "a photo of a {}")
POOL = 16384
SAVE_SECONDS = 60.0
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Stage:
    steps: int
    batch: int
    learning_rate: float


STAGES = {
    "vae": Stage(steps=2700, batch=16, learning_rate=1e-3),
    "text": Stage(steps=1850, batch=32, learning_rate=1e-3),
    "encoder": Stage(steps=3000, batch=32, learning_rate=1e-3),
    "unet": Stage(steps=6500, batch=32, learning_rate=6e-4),
}


class Scenes:
    """A training pool: images uint8 [N,3,64,64], visible classes bool [N,8]; made once, kept in ``work``.

    Args:
        work: folder of the pool's file.
        seed: seed of its scenes.
        make: make_scene or make_portrait; the pool is named for it.
    """

    def __init__(self, work: Path, seed: int, make: Callable[[np.random.Generator, str], Scene] = make_scene) -> None:
        name = make.__name__.removeprefix("make_") + "s"
        path = work / f"{name}-{seed}.npz"
        if not path.is_file():
            images = np.empty((POOL, 3, SIZE, SIZE), np.uint8)
            present = np.zeros((POOL, len(CLASS_NAMES)), bool)
            for index in tqdm(range(POOL), desc=name):
                scene = make(np.random.default_rng([seed, index, 1]), KINDS[index % len(KINDS)])
                images[index] = scene.image.transpose(2, 0, 1)
                present[index] = [name in scene.masks for name in CLASS_NAMES]
            partial = path.with_suffix(".part.npz")
            np.savez(partial, images=images, present=present)
            partial.replace(path)
        data = np.load(path)
        self.images = torch.from_numpy(data["images"])
        self.present = torch.from_numpy(data["present"])

    def batch(self, generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices, images float [B,3,64,64] in [0,1] turned and mirrored at random, present classes float [B,8]."""
        index = torch.randint(len(self.images), (count,), generator=generator)
        images = self.images[index].float() / 255
        turn, mirror = (int(torch.randint(n, (1,), generator=generator)) for n in (4, 2))
        images = torch.rot90(images, turn, (2, 3))
        return index, images.flip(3) if mirror else images, self.present[index].float()


def run_stage(
    name: str,
    modules: nn.ModuleDict,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    work: Path,
    seed: int,
    average: nn.Module | None = None,
) -> None:
    """The training loop: AdamW, warm-up, constant rate, linear decay over the last fifth. Saves ``work/name.pt``."""
    stage = STAGES[name]
    optimizer = torch.optim.AdamW(modules.parameters(), stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    path = work / f"{name}.pt"
    start = 0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        if average is not None:
            average.load_state_dict(state["average"])

    def save(step: int) -> None:
        state = {"step": step, "modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
        if average is not None:
            state["average"] = average.state_dict()
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    saved = time.monotonic()
    smooth = math.nan
    with tqdm(total=stage.steps, initial=start, desc=name, mininterval=5) as bar:
        for step in range(start, stage.steps):
            # Each step has a generator of its own, so that a resumed run sees the batches of an undisturbed one.
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 7 + len(name))
            rate = min(1.0, (step + 1) / 200, (stage.steps - step) / (0.2 * stage.steps))
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate
            loss = loss_of(generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimizer.step()
            if average is not None:
                _follow(average, next(iter(modules.values())), min(0.999, step / (step + 50)))
            value = float(loss.detach())
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                save(step + 1)
                saved = time.monotonic()
    if start < stage.steps:
        save(stage.steps)


@torch.no_grad()
def _follow(average: nn.Module, current: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def train_vae(scenes: Scenes, work: Path, seed: int) -> Any:
    vae = tiny.make_vae()

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        _, images, _ = scenes.batch(generator, STAGES["vae"].batch)
        target = images * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator)
            decoded = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        rows, columns = ((decoded - target).diff(dim=axis).abs().mean() for axis in (2, 3))
        loss: torch.Tensor = (decoded - target).abs().mean() + 0.5 * (rows + columns) + 3e-4 * divergence
        return loss

    run_stage("vae", nn.ModuleDict({"vae": vae}), loss_of, work, seed)
    return vae.eval()


class Captions:
    """Token ids of every class in both templates: int64 [2,8,77]."""

    def __init__(self) -> None:
        tokenizer = train_tokenizer()
        size = tokenizer.get_vocab_size()
        rows = []
        for template in TEMPLATES:
            for name in CLASS_NAMES:
                ids = tokenizer.encode(template.format(name), add_special_tokens=False).ids
                rows.append(([size - 2, *ids, size - 1] + [0] * 77)[:77])
        self.vocabulary = size
        self.ids = torch.tensor(rows).view(len(TEMPLATES), len(CLASS_NAMES), 77)


class Contrast:
    """Images against captions by their best-matching patches; which classes are visible is all the supervision."""

    def __init__(self) -> None:
        self.captions = Captions()
        self.image_encoder = tiny.make_image_encoder()
        self.text_encoder = tiny.make_text_encoder(self.captions.vocabulary)
        self.projection = nn.Linear(tiny.TEXT_WIDTH, tiny.FEATURE_WIDTH, bias=False)
        self.scale = nn.Linear(1, 1)  # logit scale and bias, as in sigmoid contrastive training
        nn.init.constant_(self.scale.weight, 10.0)
        nn.init.constant_(self.scale.bias, -5.0)

    def texts(self, template: int) -> torch.Tensor:
        pooled = self.text_encoder(input_ids=self.captions.ids[template]).pooler_output
        return functional.normalize(self.projection(pooled).float(), dim=-1)

    def loss(
        self, images: torch.Tensor, present: torch.Tensor, texts: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        # The generated images come through a decoder: features must bear noise and a loss of sharpness.
        if torch.rand(1, generator=generator) < 0.5:
            soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
            images = images.lerp(soft, float(torch.rand(1, generator=generator)))
        images = images + 0.04 * torch.randn(images.shape, generator=generator)
        similarity = tiny.patch_features(self.image_encoder, images).float() @ texts.T
        # Half of the patches take part in a step, so that an object is found in all its parts, not the telling one.
        kept = torch.rand(similarity.shape[:2], generator=generator) < 0.5
        weights = (10 * similarity).masked_fill(~kept[..., None], -1e4).softmax(dim=1)
        score = self.scale((weights * similarity).sum(dim=1)[..., None])[..., 0].float()
        return functional.binary_cross_entropy_with_logits(score, present)


def train_text(scenes: Scenes, work: Path, seed: int) -> Contrast:
    contrast = Contrast()
    modules = nn.ModuleDict(
        {
            "image": contrast.image_encoder,
            "text": contrast.text_encoder,
            "projection": contrast.projection,
            "scale": contrast.scale,
        }
    )

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        _, images, present = scenes.batch(generator, STAGES["text"].batch)
        template = int(torch.randint(len(TEMPLATES), (1,), generator=generator))
        with torch.autocast("cpu", torch.bfloat16):
            return contrast.loss(images, present, contrast.texts(template), generator)

    run_stage("text", modules, loss_of, work, seed)
    modules.eval()
    return contrast


def train_encoder(contrast: Contrast, scenes: Scenes, work: Path, seed: int) -> Any:
    """The image encoder alone, from where the text stage left it, on scenes and portraits in turn."""
    portraits = Scenes(work, seed, make_portrait)
    with torch.no_grad():
        texts = torch.stack([contrast.texts(template) for template in range(len(TEMPLATES))]).mean(dim=0)
    modules = nn.ModuleDict({"image": contrast.image_encoder, "scale": contrast.scale})

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        half = STAGES["encoder"].batch // 2
        batches = [pool.batch(generator, half)[1:] for pool in (scenes, portraits)]
        images, present = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            return contrast.loss(images, present, texts, generator)

    run_stage("encoder", modules, loss_of, work, seed)
    modules.eval()
    return contrast.image_encoder


@torch.no_grad()
def encode_pool(vae: Any, scenes: Scenes, work: Path) -> torch.Tensor:
    """Posterior means of the pool and its mirror images [2N,8,16,16], scaled to unit deviation by the VAE's factor."""
    path = work / "latents.pt"
    if not path.is_file():
        parts = []
        with torch.autocast("cpu", torch.bfloat16):
            for mirrored in (False, True):
                for chunk in tqdm(torch.split(scenes.images, 128), desc="latents"):
                    images = chunk.float() / 127.5 - 1
                    images = images.flip(3) if mirrored else images
                    parts.append(vae.encode(images).latent_dist.mean.float())
        torch.save(torch.cat(parts), path)
    latents: torch.Tensor = torch.load(path, weights_only=True)
    factor = round(float(1 / latents.std()), 5)
    vae.register_to_config(scaling_factor=factor)
    return latents * factor


def train_unet(latents: torch.Tensor, scenes: Scenes, text_encoder: nn.Module, work: Path, seed: int) -> Any:
    captions = Captions()
    with torch.no_grad():
        texts = torch.stack([text_encoder(input_ids=ids).last_hidden_state for ids in captions.ids])
    unet = tiny.make_unet()
    average = copy.deepcopy(unet).requires_grad_(False)
    alphas = tiny.make_scheduler().alphas_cumprod
    present = scenes.present.repeat(2, 1).float()

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        count = STAGES["unet"].batch
        index = torch.randint(len(latents), (count,), generator=generator)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        timestep = torch.randint(1, 850, (count,), generator=generator)
        signal, spread = (
            alphas[timestep].sqrt().view(-1, 1, 1, 1),
            (1 - alphas[timestep]).sqrt().view(-1, 1, 1, 1),
        )
        named = torch.multinomial(present[index], 1, generator=generator)[:, 0]
        template = torch.randint(len(TEMPLATES), (count,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(signal * clean + spread * noise, timestep, texts[template, named]).sample.float()
        return functional.mse_loss(predicted, signal * noise - spread * clean)

    run_stage("unet", nn.ModuleDict({"unet": unet}), loss_of, work, seed, average)
    return average.eval()


def write_weights(output: Path, parts: dict[str, Any]) -> None:
    """Writes the folder that ``--model tiny`` reads: diffusers' layout, half precision, tokenizer, settings."""
    for name, part in parts.items():
        part.half().save_pretrained(output / name)
    tiny.make_scheduler().save_pretrained(output / "scheduler")
    write_tokenizer(output / "tokenizer.json")
    settings = output / "g4seg.json"
    kept = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    kept |= {"note": NOTE, "licence": "Apache-2.0", "square": SIZE, "dense_mode": "last"}
    settings.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m g4seg_export.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints; a second start goes on there")
    parser.add_argument("--stage", choices=[*STAGES, "write", "all"], default="all")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="weights folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    parts = train(options.stage, options.work, options.seed)
    if options.stage in ("write", "all"):
        write_weights(options.output, parts)
    return 0


def train(choice: str, work: Path, seed: int) -> dict[str, Any]:
    """Runs one stage and what it needs (finished stages are only loaded), or all: the modules by folder name."""
    scenes = Scenes(work, seed)
    parts: dict[str, Any] = {}
    torch.manual_seed(seed)
    if choice not in ("text", "encoder"):
        parts["vae"] = train_vae(scenes, work, seed)
    if choice == "vae":
        return parts
    torch.manual_seed(seed + 1)
    contrast = train_text(scenes, work, seed)
    parts["text_encoder"] = contrast.text_encoder
    if choice not in ("text", "unet"):
        parts["image_encoder"] = train_encoder(contrast, scenes, work, seed)
    if choice not in ("text", "encoder"):
        latents = encode_pool(parts["vae"], scenes, work)
        torch.manual_seed(seed + 2)
        parts["unet"] = train_unet(latents, scenes, contrast.text_encoder, work, seed)
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
