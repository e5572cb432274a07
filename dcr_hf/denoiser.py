"""The frozen Stable Diffusion: images -> latents, noise and target; predictions for pairs of latent and condition."""

import json
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from dcr_hf.encoder import local_folder

NoiseTarget = Literal["auto", "epsilon", "velocity"]
_TARGET_OF_PREDICTION_TYPE = {"epsilon": "epsilon", "v_prediction": "velocity"}
_PARTS = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")


def check_denoiser(path_or_id: str) -> int:
    """Raise, before any weights are read, unless this is a Stable Diffusion 1.x or 2.x pipeline folder or id.

    Returns:
        C, the width of its conditions.

    Raises:
        FileNotFoundError: parts of the pipeline are missing.
        ValueError: another pipeline, or a scheduler with an unknown prediction type.
    """
    folder = local_folder(path_or_id, ["model_index.json", "*/*.json", "tokenizer/*"])
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text()) if index_file.is_file() else {}
    if "text_encoder_2" in index or (folder / "text_encoder_2").is_dir():
        raise ValueError(
            f"denoiser {path_or_id!r} is a Stable Diffusion XL ({index.get('_class_name', 'two text encoders')}): its "
            "UNet also needs a pooled prompt and time ids. Supported are Stable Diffusion 1.x and 2.x."
        )
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"denoiser {path_or_id!r} lacks {', '.join(missing)}. Expected is a Stable Diffusion 1.x or 2.x folder as "
            f"diffusers writes it, with {', '.join(_PARTS)}."
        )
    unet = json.loads((folder / "unet" / "config.json").read_text())
    if unet["_class_name"] != "UNet2DConditionModel" or unet["in_channels"] != 4:
        raise ValueError(
            f"denoiser {path_or_id!r} has a {unet['_class_name']} with {unet['in_channels']} input channels; "
            "supported is Stable Diffusion's UNet2DConditionModel with 4 (no inpainting or depth model)."
        )
    _native_target(path_or_id, json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
    return unet["cross_attention_dim"]


def _native_target(path_or_id: str, scheduler_config: dict) -> str:
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in _TARGET_OF_PREDICTION_TYPE:
        raise ValueError(
            f"denoiser {path_or_id!r}: its scheduler's prediction_type is {prediction_type!r}; supported are "
            f"{', '.join(_TARGET_OF_PREDICTION_TYPE)}."
        )
    return _TARGET_OF_PREDICTION_TYPE[prediction_type]


class FrozenDenoiser(nn.Module):
    """A frozen Stable Diffusion that predicts noise (or velocity) under conditions made from images.

    A condition c (C,) is added to every token of the empty prompt's embedding E (77, C). It is never a child of the
    trained module: it holds no trainable weight, and checkpoints and ZeRO must not see it. It computes in its own
    dtype, whatever autocast is active, and returns float32.

    Attributes:
        condition_width: C, the UNet's `cross_attention_dim`.
        empty_prompt: E (1, 77, C).
        noise_target: "epsilon" or "velocity", what y is.
        pair_chunk_size: pairs that go through the UNet at once; 0 for all. Chunks are recomputed in the backward
            pass, so that the chunk and not B * B sets the peak memory; one chunk is never recomputed.
        evaluations: forward passes of the UNet asked for so far, recomputations not counted.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        empty_prompt: Tensor,
        noise_target: NoiseTarget = "auto",
        pair_chunk_size: int = 0,
    ):
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.scheduler = scheduler
        self.native_target = _native_target("denoiser", scheduler.config)
        self.noise_target = self.native_target if noise_target == "auto" else noise_target
        self.condition_width: int = unet.config.cross_attention_dim
        self.pair_chunk_size = pair_chunk_size
        self.evaluations = 0
        self.register_buffer("empty_prompt", empty_prompt.to(unet.dtype), persistent=False)
        # float32 on the device once: DDPMScheduler keeps them on the CPU and would copy them at every step.
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float().clone(), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        dtype: torch.dtype | None = None,
        noise_target: NoiseTarget = "auto",
        pair_chunk_size: int = 0,
    ) -> "FrozenDenoiser":
        """Load a diffusers Stable Diffusion 1.x or 2.x folder or id, on the CPU.

        Args:
            path_or_id: folder or hub id with unet, vae, scheduler, tokenizer and text_encoder (safetensors).
            dtype: of UNet, VAE and empty prompt; by default bfloat16 where there is a GPU, else float32.
            noise_target: "auto" is what the scheduler says that the model predicts.
            pair_chunk_size: see the class.
        """
        check_denoiser(path_or_id)
        if dtype is None:
            dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        load = {"torch_dtype": dtype, "use_safetensors": True}
        return cls(
            unet=UNet2DConditionModel.from_pretrained(path_or_id, subfolder="unet", **load),
            vae=AutoencoderKL.from_pretrained(path_or_id, subfolder="vae", **load),
            scheduler=DDPMScheduler.from_pretrained(path_or_id, subfolder="scheduler"),
            empty_prompt=_embed_empty_prompt(path_or_id),
            noise_target=noise_target,
            pair_chunk_size=pair_chunk_size,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> sampled, scaled latents l (B, 4, h, w), float32."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist
            return posterior.sample().float() * self.vae.config.scaling_factor

    def draw_timesteps(self, batch: int) -> Tensor:
        """One random timestep t an image, (B,)."""
        steps = self.scheduler.config.num_train_timesteps
        return torch.randint(steps, (batch,), device=self.alphas_cumprod.device)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """n = sqrt(abar_t) l + sqrt(1 - abar_t) e, all (B, 4, h, w); timesteps (B,)."""
        signal, sigma = self._levels(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """y (B, 4, h, w): the noise e, or the velocity sqrt(abar_t) e - sqrt(1 - abar_t) l."""
        if self.noise_target == "epsilon":
            return noise
        signal, sigma = self._levels(timesteps)
        return signal * noise - sigma * latents

    def as_noise(self, predictions: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that predictions (B, 4, h, w) of this denoiser stand for, whatever it was trained to predict."""
        if self.native_target == "epsilon":
            return predictions
        signal, sigma = self._levels(timesteps)
        return signal * predictions + sigma * noisy_latents

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """The prediction for each noisy latent under its own condition.

        Args:
            noisy_latents: n (B, 4, h, w).
            timesteps: t (B,).
            conditions: c (B, C).

        Returns:
            (B, 4, h, w), float32, differentiable in the conditions.
        """
        rows = torch.arange(len(noisy_latents), device=noisy_latents.device)
        return self._predict_indexed(noisy_latents, timesteps, conditions, rows, rows)

    def predict_pairs(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """P: the prediction for every noisy latent under every condition.

        Args:
            noisy_latents: n (B, 4, h, w).
            timesteps: t (B,).
            conditions: c (K, C).

        Returns:
            (B, K, 4, h, w), float32, differentiable in the conditions.
        """
        batch, count = len(noisy_latents), len(conditions)
        pairs = torch.arange(batch * count, device=noisy_latents.device)
        flat = self._predict_indexed(noisy_latents, timesteps, conditions, pairs // count, pairs % count)
        return flat.unflatten(0, (batch, count))  # (B, K, 4, h, w)

    def _predict_indexed(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditions: Tensor,
        latent_index: Tensor,
        condition_index: Tensor,
    ) -> Tensor:
        """(P, 4, h, w): latent latent_index[p] under condition condition_index[p], in chunks of pairs."""
        self.evaluations += len(latent_index)
        size = self.pair_chunk_size or len(latent_index)
        chunks = list(zip(latent_index.split(size), condition_index.split(size), strict=True))
        recompute = len(chunks) > 1 and torch.is_grad_enabled() and conditions.requires_grad
        predictions = []
        for rows, columns in chunks:
            inputs = (noisy_latents, timesteps, conditions, rows, columns)
            if recompute:
                # The frozen UNet in eval mode draws no random numbers: there is no generator state to bring back.
                chunk = checkpoint(self._predict_chunk, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                chunk = self._predict_chunk(*inputs)
            predictions.append(chunk)
        return torch.cat(predictions)

    def _predict_chunk(
        self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """The plain path, right for any condition: E + 1 c through the UNet's own cross-attention."""
        with torch.autocast(noisy_latents.device.type, enabled=False):
            tokens = self.empty_prompt + conditions[columns].to(self.dtype)[:, None]  # (P, 77, C)
            return self.unet(noisy_latents[rows].to(self.dtype), timesteps[rows], tokens, return_dict=False)[0].float()

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each (B, 1, 1, 1)."""
        alpha_bar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


@torch.no_grad()
def _embed_empty_prompt(path_or_id: str) -> Tensor:
    """E (1, 77, C) of the denoiser's own text encoder, which is dropped afterwards: E never changes."""
    tokenizer = CLIPTokenizer.from_pretrained(path_or_id, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(path_or_id, subfolder="text_encoder", dtype=torch.float32).eval()
    tokens = tokenizer(
        "", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return text_encoder(tokens.input_ids).last_hidden_state
