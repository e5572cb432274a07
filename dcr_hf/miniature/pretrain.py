"""Pretraining of the miniature's models: what each part learns from, and the folders that come of it."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from dcr_hf.miniature import models
from dcr_hf.miniature.captions import NAMED, NAMED_WITH_FINE_CLASSES, coarse_caption, full_caption
from dcr_hf.miniature.fitting import Autoencoding, Averaging, Batches, Contrast, Denoising, fit
from dcr_hf.miniature.layouts import draw_scenes, pairs
from dcr_hf.miniature.models import CLIP_FOLDER, CLIP_FOLDERS, DENOISER_FOLDERS, MAX_TOKENS, Size
from dcr_hf.miniature.scenes import ATTRIBUTES, Attribute, Scene, sample_scene
from dcr_hf.training.checkpoints import writing

CAPTIONS_AN_IMAGE = 5
OTHERS_NAMED = 0.5  # how often the caption of the taught CLIP names what a scene shares with its twin
NO_CAPTION = 0.15  # of the denoiser's captions are empty: its empty prompt means "anything"
_CAPTION_KEY = 23


@dataclass(frozen=True)
class TrainingDraw:
    """Scenes and their pixels (N, S, S, 3), uint8."""

    scenes: list[Scene]
    pixels: np.ndarray

    @classmethod
    def of(cls, size: Size, seed: int, count: int | None = None) -> "TrainingDraw":
        scenes = [sample_scene("train", index, seed) for index in range(count or size.images)]
        return cls(scenes, draw_scenes(scenes, size.image_size, "scenes to pretrain on"))

    def images(self, rows: list[int] | slice) -> Tensor:
        """(B, 3, S, S) in [0, 1]."""
        return torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2).float() / 255


def tokenize(tokenizer, captions: list[str]) -> Tensor:
    """(B, MAX_TOKENS)"""
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids


def pretrain_clip(
    draw: TrainingDraw, size: Size, output: Path, work: Path, seed: int, classes: str = "coarse"
) -> Path:
    """CLIP on the first `clip_images` with captions that always name the class: `coarse`, one of eight shapes, or
    `fine`. Returns its folder."""
    folder = output / CLIP_FOLDERS[classes]
    named = {"coarse": NAMED, "fine": NAMED_WITH_FINE_CLASSES}[classes]
    if folder.is_dir():
        return folder
    tokenizer = models.make_tokenizer()
    random = np.random.default_rng((seed, _CAPTION_KEY))
    scenes = draw.scenes[: size.clip_images]
    images = len(scenes)
    rounds = [
        tokenize(tokenizer, [coarse_caption(scene, random, named) for scene in scenes])
        for _ in range(CAPTIONS_AN_IMAGE)
    ]

    def batch(rows: list[int]) -> dict[str, Tensor]:
        words = torch.stack([rounds[row // images][row % images] for row in rows])
        return {"images": draw.images([row % images for row in rows]), "input_ids": words}

    torch.manual_seed(seed)
    clip = models.make_clip(size, tokenizer)
    fit(
        Contrast(clip),
        Batches(CAPTIONS_AN_IMAGE * images, batch),
        size,
        "clip",
        work / folder.name.replace(CLIP_FOLDER, "clip"),
        seed,
    )
    return _save(folder, clip, models.make_image_processor(size), tokenizer)


def pretrain_taught_clip(base: Path, attribute: Attribute, size: Size, output: Path, work: Path, seed: int) -> Path:
    """The CLIP in `base`, trained on by telling it of one attribute: scenes, each beside one that differs from it in
    that alone, which both captions name. Among independent scenes a few attributes settle which caption belongs to
    which image, and the others need not be learnt. Returns its folder."""
    folder = output / CLIP_FOLDER
    if folder.is_dir():
        return folder
    tokenizer = models.make_tokenizer()
    random = np.random.default_rng((seed, _CAPTION_KEY, 2))
    chances = dict.fromkeys(NAMED, OTHERS_NAMED) | {attribute.name: 1.0}
    every = pairs("train", size.images // (2 * len(ATTRIBUTES)), seed)
    scenes = [twin for of, *twins in every if of == attribute for twin in twins]
    captions = [coarse_caption(scene, random, chances) for scene in scenes]
    draw = TrainingDraw(scenes, draw_scenes(scenes, size.image_size, f"scenes and twins of another {attribute.name}"))
    words = tokenize(tokenizer, captions)

    def batch(rows: list[int]) -> dict[str, Tensor]:
        both = [2 * row + twin for row in rows for twin in (0, 1)]
        return {"images": draw.images(both), "input_ids": words[both]}

    clip = CLIPModel.from_pretrained(base)
    fit(Contrast(clip), Batches(len(scenes) // 2, batch), size, "told", work, seed)
    return _save(folder, clip, models.make_image_processor(size), tokenizer)


def pretrain_vae(draw: TrainingDraw, size: Size, work: Path, seed: int) -> Path:
    """The autoencoder, with the factor that brings its latents to unit variance. Returns its folder."""
    folder = work / "vae-finished"
    if folder.is_dir():
        return folder
    torch.manual_seed(seed)
    vae = models.make_vae(size)
    images = Batches(len(draw.scenes), lambda rows: {"images": draw.images(rows)})
    fit(Autoencoding(vae), images, size, "vae", work / "vae", seed)
    vae.register_to_config(scaling_factor=1 / encode(vae, draw.images(slice(1024))).std().item())
    return _save(folder, vae)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The mean latents (N, 4, h, w) of images in [0, 1], not scaled; on a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn.Module.to(vae, device).eval()
    parts = [vae.encode(part.to(device) * 2 - 1).latent_dist.mode().cpu() for part in images.split(256)]
    return torch.cat(parts)


def all_latents(draw: TrainingDraw, vae: AutoencoderKL, work: Path) -> Tensor:
    """The scaled mean latents (N, 4, h, w) of all images. Encoded once: they stay in `work` for other prediction types
    and for a call that resumes."""
    weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in vae.state_dict().values())
    file = work / f"latents-{hashlib.sha256(weights).hexdigest()[:16]}.safetensors"
    if not file.is_file():
        starts = range(0, len(draw.scenes), 1024)  # as pixels in float32 all of them would take gigabytes
        latents = torch.cat([encode(vae, draw.images(slice(start, start + 1024))) for start in starts])
        partial = file.with_suffix(".partial")
        work.mkdir(parents=True, exist_ok=True)
        with writing(partial, needed=latents.nbytes, remedy="Make room"):
            save_file({"latents": latents.contiguous()}, partial)
        partial.replace(file)
    latents = load_file(file)["latents"].to(memory_format=torch.channels_last)  # as they come from the VAE
    return latents * vae.config["scaling_factor"]


def pretrain_denoiser(
    draw: TrainingDraw, vae: AutoencoderKL, size: Size, output: Path, work: Path, seed: int, prediction_type: str
) -> Path:
    """UNet and text encoder on the latents of all images. Returns the Stable Diffusion folder."""
    folder = output / DENOISER_FOLDERS[prediction_type]
    if folder.is_dir():
        return folder
    tokenizer = models.make_tokenizer()
    latents = all_latents(draw, vae, work)
    words = tokenize(tokenizer, [full_caption(scene) for scene in draw.scenes])
    silent = np.random.default_rng((seed, _CAPTION_KEY, 1)).uniform(size=len(words)) < NO_CAPTION
    words[torch.from_numpy(silent)] = tokenize(tokenizer, [""])

    def batch(rows: list[int]) -> dict[str, Tensor]:
        return {"latents": latents[rows], "input_ids": words[rows]}

    torch.manual_seed(seed)
    scheduler = models.make_scheduler(prediction_type)
    training = Denoising(models.make_unet(size), models.make_text_encoder(size, tokenizer), scheduler)
    fit(training, Batches(len(latents), batch), size, "unet", work / f"unet-{prediction_type}", seed, [Averaging()])
    averaged = cast(nn.ModuleDict, training.averaged.module).cpu()
    from diffusers import StableDiffusionPipeline  # its import prints lines about torchvision

    pipeline = StableDiffusionPipeline(
        vae=vae.cpu(),
        text_encoder=averaged["text_encoder"],
        tokenizer=tokenizer,
        unet=averaged["unet"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _save(folder, pipeline)


def _save(folder: Path, *parts) -> Path:
    """Write a folder that exists only once it is complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with writing(unfinished, needed=0, remedy="Make room"):
        for part in parts:
            part.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder
