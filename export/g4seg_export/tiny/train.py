"""Trains the miniature model on synthetic scenes: ``python -m g4seg_export.tiny.train --work DIR``.

Five stages, each seeded and resumable (a checkpoint every minute):

- ``vae``: autoencoder.
- ``text``: image and text encoder together, contrastive, from captions alone.
- ``encoder``: the image encoder goes on, every patch against the captions, with the scenes' exact masks. Captions alone
  taught it the plain scenes and nothing of the shuffled ones in the time that a CPU has; CLIP had 400 million pairs.
- ``unet``: one-step denoising, conditioned on the caption of one object. It never sees a mask.
- ``decoder``: the autoencoder's decoder goes on alone, with the image encoder as its perceptual loss.

The first two stages may run side by side, then ``encoder`` and ``unet``.
``--stage all`` writes the weights folder in diffusers' layout, half precision, that ``--model tiny`` exports;
``--stage write`` does that alone, from finished stages.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from g4seg_export.tiny import model as tiny
from g4seg_export.tiny.loop import Stage, run_stage
from g4seg_export.tiny.pool import Scenes
from g4seg_export.tiny.scenes import CLASS_NAMES, NOTE, SIZE
from g4seg_export.tiny.tokenizer import train_tokenizer, write_tokenizer

TEMPLATES = ("a photo of {}", "a photo of a {}")
WEIGHTS = Path(__file__).parent / "weights"


STAGES = {
    "vae": Stage(steps=2700, batch=16, learning_rate=1e-3),
    "text": Stage(steps=1850, batch=32, learning_rate=1e-3),
    "encoder": Stage(steps=2400, batch=32, learning_rate=1e-3),
    "decoder": Stage(steps=800, batch=16, learning_rate=6e-4),
    "unet": Stage(steps=2200, batch=32, learning_rate=8e-4),
}


def train_vae(scenes: Scenes, work: Path, seed: int) -> Any:
    vae = tiny.make_vae()

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        target = scenes.batch(generator, STAGES["vae"].batch).images * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator)
            decoded = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        rows, columns = ((decoded - target).diff(dim=axis).abs().mean() for axis in (2, 3))
        loss: torch.Tensor = (decoded - target).abs().mean() + 0.5 * (rows + columns) + 3e-4 * divergence
        return loss

    run_stage("vae", STAGES["vae"], nn.ModuleDict({"vae": vae}), loss_of, work, seed)
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
    """Image encoder and text encoder in one space: a patch is compared with the captions of all classes."""

    def __init__(self) -> None:
        self.captions = Captions()
        self.image_encoder = tiny.make_image_encoder()
        self.text_encoder = tiny.make_text_encoder(self.captions.vocabulary)
        self.projection = nn.Linear(tiny.TEXT_WIDTH, tiny.FEATURE_WIDTH, bias=False)
        self.scale = nn.Linear(1, 1)  # logit scale and bias, as in sigmoid contrastive training
        nn.init.constant_(self.scale.weight, 10.0)
        nn.init.constant_(self.scale.bias, -5.0)

    def texts(self, template: int) -> torch.Tensor:
        """Unit embeddings of the captions [8,64]."""
        pooled = self.text_encoder(input_ids=self.captions.ids[template]).pooler_output
        return functional.normalize(self.projection(pooled).float(), dim=-1)

    def similarity(self, images: torch.Tensor, texts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Of every patch with every caption: images [B,3,64,64] -> [B,256,8]."""
        images = images + 0.04 * torch.randn(images.shape, generator=generator)
        return tiny.patch_features(self.image_encoder, images).float() @ texts.T

    def logits(self, similarity: torch.Tensor) -> torch.Tensor:
        return self.scale(similarity[..., None])[..., 0].float()  # type: ignore[no-any-return]


def train_text(scenes: Scenes, work: Path, seed: int) -> Contrast:
    """Which classes are visible, from the best-matching patches."""
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
        batch = scenes.batch(generator, STAGES["text"].batch)
        template = int(torch.randint(len(TEMPLATES), (1,), generator=generator))
        with torch.autocast("cpu", torch.bfloat16):
            similarity = contrast.similarity(batch.images, contrast.texts(template), generator)
            # Half of the patches take part in a step, so that an object is found in all its parts.
            kept = torch.rand(similarity.shape[:2], generator=generator) < 0.5
            weights = (10 * similarity).masked_fill(~kept[..., None], -1e4).softmax(dim=1)
            score = contrast.logits((weights * similarity).sum(dim=1))
        return functional.binary_cross_entropy_with_logits(score, batch.present)

    run_stage("text", STAGES["text"], modules, loss_of, work, seed)
    modules.eval()
    return contrast


def train_encoder(contrast: Contrast, scenes: Scenes, decoded: torch.Tensor, work: Path, seed: int) -> Any:
    """Which class each patch shows, from where the text stage left the image encoder; the texts stay.

    Ground is the direction away from all captions. The low fixed scale pulls the patches of a class together until
    little but the class is left in a feature: a neighbour is then anywhere on the object, not where the texture is.
    Half of the pictures have been through the autoencoder, as generated ones have: without that, features of thin
    outlines are lost in the decoder's softness.
    """
    pools = scenes, scenes.with_images(decoded)
    with torch.no_grad():
        texts = torch.stack([contrast.texts(template) for template in range(len(TEMPLATES))]).mean(dim=0)
        targets = functional.normalize(torch.cat([-texts.mean(dim=0, keepdim=True), texts]), dim=-1)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        pool = pools[int(torch.randint(2, (1,), generator=generator))]
        batch = pool.batch(generator, STAGES["encoder"].batch)
        shown = functional.one_hot(batch.labels, len(targets)).float()
        shares = functional.avg_pool2d(shown.permute(0, 3, 1, 2), tiny.PATCH).flatten(2)
        with torch.autocast("cpu", torch.bfloat16):
            similarity = contrast.similarity(batch.images, targets, generator)
        return functional.cross_entropy(8 * similarity.float().transpose(1, 2), shares)

    modules = nn.ModuleDict({"image": contrast.image_encoder})
    run_stage("encoder", STAGES["encoder"], modules, loss_of, work, seed)
    modules.eval()
    return contrast.image_encoder


@torch.no_grad()
def encode_pool(vae: Any, scenes: Scenes, work: Path) -> torch.Tensor:
    """Posterior means of the pool [N,8,16,16], scaled to unit deviation by the VAE's factor, which is set here."""
    path = work / "latents.pt"
    if not path.is_file():
        with torch.autocast("cpu", torch.bfloat16):
            parts = [
                vae.encode(chunk.float() / 127.5 - 1).latent_dist.mean.float()
                for chunk in tqdm(torch.split(scenes.images, 64), desc="latents")
            ]
        torch.save(torch.cat(parts), path)
    latents: torch.Tensor = torch.load(path, weights_only=True)
    factor = round(float(1 / latents.std()), 5)
    vae.register_to_config(scaling_factor=factor)
    return latents * factor


@torch.no_grad()
def decode_pool(vae: Any, latents: torch.Tensor, work: Path, seed: int) -> torch.Tensor:
    """The first half of the pool through the decoder, its latents a little off as a generation's are: uint8."""
    path = work / "decoded.pt"
    if not path.is_file():
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for chunk in tqdm(torch.split(latents[: len(latents) // 2], 64), desc="decoded"):
            noise = torch.randn(chunk.shape, generator=generator)
            amount = 0.3 * torch.rand((len(chunk), 1, 1, 1), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                images = vae.decode((chunk + amount * noise) / vae.config["scaling_factor"]).sample.float()
            parts.append((images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8))
        torch.save(torch.cat(parts), path)
    decoded: torch.Tensor = torch.load(path, weights_only=True)
    return decoded


def train_decoder(vae: Any, image_encoder: Any, scenes: Scenes, latents: torch.Tensor, work: Path, seed: int) -> None:
    """What the image encoder sees in a picture, it is to see in the decoded one: outlines count more than pixels."""
    image_encoder.requires_grad_(False)
    factor = vae.config["scaling_factor"]

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        count = STAGES["decoder"].batch
        index = torch.randint(len(latents), (count,), generator=generator)
        clean = latents[index]
        amount = 0.3 * torch.rand((count, 1, 1, 1), generator=generator)
        noisy = clean + amount * torch.randn(clean.shape, generator=generator)
        images = scenes.images[index].float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(noisy / factor).sample.float() / 2 + 0.5
            with torch.no_grad():
                wanted = tiny.patch_features(image_encoder, images).float()
            seen = tiny.patch_features(image_encoder, decoded.clamp(-0.1, 1.1)).float()
        difference = 2 * (decoded - images)
        rows, columns = (difference.diff(dim=axis).abs().mean() for axis in (2, 3))
        loss: torch.Tensor = difference.abs().mean() + 0.5 * (rows + columns) + (1 - (seen * wanted).sum(-1)).mean()
        return loss

    modules = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    run_stage("decoder", STAGES["decoder"], modules, loss_of, work, seed)
    modules.eval()


def train_unet(latents: torch.Tensor, scenes: Scenes, text_encoder: nn.Module, work: Path, seed: int) -> Any:
    captions = Captions()
    with torch.no_grad():
        texts = torch.stack([text_encoder(input_ids=ids).last_hidden_state for ids in captions.ids])
    unet = tiny.make_unet()
    average = copy.deepcopy(unet).requires_grad_(False)
    alphas = tiny.make_scheduler().alphas_cumprod

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
        named = torch.multinomial(scenes.present[index], 1, generator=generator)[:, 0]
        template = torch.randint(len(TEMPLATES), (count,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(signal * clean + spread * noise, timestep, texts[template, named]).sample.float()
        return functional.mse_loss(predicted, signal * noise - spread * clean)

    run_stage("unet", STAGES["unet"], nn.ModuleDict({"unet": unet}), loss_of, work, seed, average)
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
    if choice != "text":
        torch.manual_seed(seed)
        parts["vae"] = train_vae(scenes, work, seed)
    if choice != "vae":
        torch.manual_seed(seed + 1)
        contrast = train_text(scenes, work, seed)
        parts["text_encoder"] = contrast.text_encoder
    if choice in ("vae", "text"):
        return parts
    latents = encode_pool(parts["vae"], scenes, work)
    if choice != "unet":
        decoded = decode_pool(parts["vae"], latents, work, seed)
        parts["image_encoder"] = train_encoder(contrast, scenes, decoded, work, seed)
        if choice != "encoder":
            train_decoder(parts["vae"], parts["image_encoder"], scenes, latents, work, seed)
    if choice not in ("encoder", "decoder"):
        torch.manual_seed(seed + 2)
        parts["unet"] = train_unet(latents, scenes, contrast.text_encoder, work, seed)
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
