"""What pretraining led to: both abilities of the CLIP, the autoencoder's error, whether the denoiser listens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.evaluation.plan import prepare
from dcr_hf.evaluation.run import execute
from dcr_hf.evaluation.scoring.results import Results
from dcr_hf.miniature.captions import full_caption
from dcr_hf.miniature.layouts import PAIRS, draw_scenes
from dcr_hf.miniature.pretrain import tokenize
from dcr_hf.miniature.scenes import ATTRIBUTES, sample_scene

BENCHMARKS = (
    f"mmvp_vlm:{PAIRS}",
    "clustering:scene_shape",
    "zeroshot:scene_shape",
    "zeroshot:scene_color",
    *(f"linear_probe:scene_{name}" for name in ("shape", *(attribute.name for attribute in ATTRIBUTES))),
)
_SCENES_FROM = 2_000_000  # of the denoiser's images, which no other set reaches
_BATCH = 100


def measure_encoders(
    encoders: dict[str, str],
    data: Path,
    output: Path,
    benchmarks: Sequence[str] = BENCHMARKS,
    cache: Path | None = None,
    page: bool = True,
) -> Results:
    """Both abilities of the encoders (folder by name), by the ordinary evaluation; its results are left in `output`,
    with `page` the report too.

    Embeddings are kept in `cache`, by default within `output`.
    """
    prepared = prepare(encoders, list(benchmarks), data)
    results = execute(prepared, output, cache or output / "cache", seeds=(0, 1, 2), batch_size=256, page=page)
    return cast(Results, results)  # None on all ranks but the first, where no caller reads it


def scores(results: Results) -> dict[str, dict[str, list[float]]]:
    """{encoder: {'benchmark/dataset/metric': [value, low, high]}}"""
    found: dict[str, dict[str, list[float]]] = {}
    for row in results.results:
        name = f"{row['benchmark']}/{row['dataset']}/{row['metric']}"
        found.setdefault(row["encoder"], {})[name] = [round(row[part], 4) for part in ("value", "low", "high")]
    return found


@torch.no_grad()
def measure_denoiser(folder: Path, draw: str = "dev", count: int = 2000, seed: int = 0) -> dict[str, float]:
    """Mean squared errors of a Stable Diffusion folder on scenes that it has not seen.

    Returns:
        `vae_mse`, of pixels in [-1, 1]; `vae_noise`, how much of a latent channel's variance over images is noise that
        the VAE itself adds when latents are sampled, of the channel that has most; `noise_mse/full`, `/empty` and
        `/wrong`: of the noise (a velocity is turned into one) under the image's full caption, the empty one and
        another image's, for the same latents (sampled, as DCR does), noise and timesteps; `noise_mse/empty-full` and
        `/wrong-empty` with their standard errors.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser = FrozenDenoiser.from_pretrained(str(folder), torch.float32).to(device)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval()
    nn.Module.to(text_encoder, device)
    scenes = [sample_scene(draw, _SCENES_FROM + index, seed) for index in range(count)]
    pixels = draw_scenes(scenes, denoiser.vae.config["sample_size"], "scenes for the denoiser")
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).to(device)
    captions = [full_caption(scene) for scene in scenes]
    said = {"full": captions, "empty": [""] * count, "wrong": captions[1:] + captions[:1]}
    words = {
        name: text_encoder(tokenize(tokenizer, texts).to(device)).last_hidden_state for name, texts in said.items()
    }
    # Two, of other seeds: noise must not be what the latents were sampled with.
    generator, sampling = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    factor = denoiser.vae.config["scaling_factor"]
    means_of_latents, variances = [], []
    errors: dict[str, list[Tensor]] = {name: [] for name in ("vae", *said)}
    for start in tqdm(range(0, count, _BATCH), desc=f"measuring {folder.name}", unit=" batches"):
        rows = slice(start, start + _BATCH)
        posterior = denoiser.vae.encode(images[rows] * 2 - 1).latent_dist
        means_of_latents.append(posterior.mean)
        variances.append(posterior.var)
        decoded = denoiser.decode(posterior.mode() * factor)
        errors["vae"].append((2 * (decoded - images[rows])).square().mean((1, 2, 3)))
        latents = posterior.sample(sampling) * factor
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = torch.randint(1000, (len(latents),), generator=generator).to(device)
        noisy = denoiser.add_noise(latents, noise, timesteps)
        for name in said:
            # A caption is a condition too: what it adds to the empty prompt, token by token.
            predicted = denoiser.predict(noisy, timesteps, words[name][rows] - denoiser.empty_prompt)
            errors[name].append((denoiser.as_noise(predicted, noisy, timesteps) - noise).square().mean((1, 2, 3)))
    means = {name: torch.cat(parts) for name, parts in errors.items()}
    own, of_images = torch.cat(variances).mean((0, 2, 3)), torch.cat(means_of_latents).var((0, 2, 3))
    report = {"vae_mse": means.pop("vae").mean().item(), "vae_noise": (own / (own + of_images)).max().item()}
    report |= {f"noise_mse/{name}": values.mean().item() for name, values in means.items()}
    for better, worse in (("full", "empty"), ("empty", "wrong")):
        difference = means[worse] - means[better]
        report[f"noise_mse/{worse}-{better}"] = difference.mean().item()
        report[f"noise_mse/{worse}-{better}/standard_error"] = (difference.std() / count**0.5).item()
    return {name: round(value, 5) for name, value in report.items()}


def pair_scores(results: Results, encoder: str) -> dict[str, float]:
    """Share of right pairs by category, and `all`."""
    return {
        row["dataset"]: row["value"]
        for row in results.results
        if (row["encoder"], row["benchmark"]) == (encoder, "mmvp_vlm")
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
