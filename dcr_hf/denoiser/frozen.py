"""The frozen Stable Diffusion: images -> latents, noise and target; predictions for pairs of latent and condition."""

import logging
from typing import Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from dcr_hf.denoiser.chunks import ChunkPlan, Evaluate, predict_in_chunks
from dcr_hf.denoiser.fast_path import begin, finish, install, why_not_exact
from dcr_hf.denoiser.parts import load_scheduler, load_unet, load_vae
from dcr_hf.denoiser.pipeline import check_denoiser, embed_empty_prompt, time_ids
from dcr_hf.denoiser.planner import make_plan
from dcr_hf.denoiser.schedule import NoiseSchedule, NoiseTarget
from dcr_hf.denoiser.shared_keys import choose_keys

logger = logging.getLogger(__name__)

PairChunkSize = int | Literal["auto"]


class FrozenDenoiser(NoiseSchedule):
    """A frozen Stable Diffusion that predicts noise (or velocity) under conditions made from images.

    A condition c (C,) is added to every token of the empty prompt's embedding E (77, C); `fast_path` computes the same
    predictions at less cost. A condition may also bring its own tokens (`with_tokens`). The denoiser is never a child
    of the trained module: checkpoints and ZeRO must not see it. It computes in its own dtype, whatever autocast is
    active, and returns float32 (float64 if it is in float64).

    Attributes:
        condition_width: C, the UNet's `cross_attention_dim`.
        empty_prompt: E (1, 77, C), zeros for most SD-XL, see `pipeline.embed_empty_prompt`.
        token_norm: the mean norm of the text encoder's tokens of the empty prompt.
        pooled_prompt: (1, P), SD-XL's pooled text embedding; None elsewhere.
        bias_matrix: (L, C), maps a condition to the biases of all cross-attention layers; None where the fast path is
            not exact for this UNet: all conditions then take the plain path.
        pair_chunk_size: pairs that pass the UNet at once; 0 for all. All chunks but the last are recomputed in the
            backward pass, so that the chunk and not B * B sets the peak memory. "auto": by free memory, see `planner`.
        evaluations: UNet evaluations so far, one a pair, without recomputations.
    """

    empty_prompt: Tensor
    pooled_prompt: Tensor | None
    bias_matrix: Tensor | None

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        empty_prompt: Tensor,
        noise_target: NoiseTarget = "auto",
        pair_chunk_size: PairChunkSize = 0,
        pooled_prompt: Tensor | None = None,
        token_norm: float | None = None,
    ):
        super().__init__(scheduler, noise_target)
        self.unet = unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # diffusers wraps it
        self.vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # likewise
        self.condition_width: int = unet.config["cross_attention_dim"]
        self.pair_chunk_size = pair_chunk_size
        self.evaluations = 0
        self.register_buffer("empty_prompt", empty_prompt.to(unet.dtype), persistent=False)
        pooled = None if pooled_prompt is None else pooled_prompt.to(unet.dtype)
        self.register_buffer("pooled_prompt", pooled, persistent=False)
        self.token_norm = empty_prompt.float().norm(dim=-1).mean().item() if token_norm is None else token_norm
        self.requires_grad_(False).eval()
        if reason := why_not_exact(unet.config):
            logger.warning(f"All conditions take the plain path through this denoiser's UNet, because of {reason}.")
        self.register_buffer("bias_matrix", None if reason else install(unet, self.empty_prompt), persistent=False)
        self._plans: dict[tuple, ChunkPlan] = {}
        self._finish, self._forward, self._compiled = finish, unet.forward, False

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        dtype: torch.dtype | None = None,
        noise_target: NoiseTarget = "auto",
        pair_chunk_size: PairChunkSize = 0,
        mask_prompt_padding: bool = False,
    ) -> "FrozenDenoiser":
        """A diffusers Stable Diffusion 1.x, 2.x or XL, loaded from a folder or hub id to the CPU.

        Args:
            path_or_id: see `check_denoiser`; weights in safetensors.
            dtype: of UNet, VAE (but see `load_vae`) and empty prompt; by default bfloat16 on a GPU, else float32.
            noise_target: "auto": the scheduler's prediction type.
            pair_chunk_size: see the class.
            mask_prompt_padding: see `embed_empty_prompt`.
        """
        check_denoiser(path_or_id)
        if dtype is None:
            dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        prompt = embed_empty_prompt(path_or_id, mask_prompt_padding)
        return cls(
            unet=load_unet(path_or_id, dtype),
            vae=load_vae(path_or_id, dtype),
            scheduler=load_scheduler(path_or_id),
            empty_prompt=prompt.tokens,
            noise_target=noise_target,
            pair_chunk_size=pair_chunk_size,
            pooled_prompt=prompt.pooled,
            token_norm=prompt.token_norm,
        )

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        choose_keys(self.unet)  # on the device and in the dtype that it now has
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def prompt_length(self) -> int:
        """The number of E's tokens: 77 in every Stable Diffusion."""
        return self.empty_prompt.shape[1]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> sampled, scaled latents l (B, 4, h, w), float32."""
        with _own_dtype(images):
            posterior = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist
            return _full(posterior.sample()) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> images (B, 3, H, W), about in [0, 1], float32."""
        with _own_dtype(latents):
            scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
            return _full(self.vae.decode(scaled).sample) / 2 + 0.5

    def with_tokens(self, conditions: Tensor, tokens: Tensor | None) -> Tensor:
        """Conditions with their own tokens, as `predict_chosen` takes them.

        Args:
            conditions: c (B, C), added to every token of the empty prompt.
            tokens: (B, M, C), appended to those for the cross-attention; None for c alone.

        Returns:
            (B, 77 + M, C), or c unchanged.
        """
        if tokens is None:
            return conditions
        return torch.cat([conditions[:, None].expand(-1, self.prompt_length, -1), tokens], dim=1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """The prediction (B, 4, h, w) for each noisy latent under its own of B conditions; see `predict_chosen`."""
        own = torch.arange(len(noisy_latents), device=noisy_latents.device)[:, None]
        return self.predict_chosen(noisy_latents, timesteps, conditions, own).squeeze(1)

    def predict_pairs(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """P (B, K, 4, h, w): the prediction for every noisy latent under every condition; see `predict_chosen`."""
        every = torch.arange(len(conditions), device=noisy_latents.device).expand(len(noisy_latents), -1)
        return self.predict_chosen(noisy_latents, timesteps, conditions, every)

    def predict_chosen(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor, chosen: Tensor) -> Tensor:
        """The predictions for every noisy latent under the conditions chosen for it.

        Conditions that are the same for all tokens take the fast path where it is exact for this UNet, others the
        plain path: `conditions[:, None].expand(-1, 77, -1)` forces the plain one, for comparison.

        Args:
            noisy_latents: n (B, 4, h, w).
            timesteps: t (B,).
            conditions: c (K, C); or (K, 77, C) with one vector a token; or (K, 77 + M, C), whose last M are
                tokens of its own, see `with_tokens`.
            chosen: (B, M), [i, m] is the index of the m-th condition of latent i.

        Returns:
            (B, M, 4, h, w), float32, differentiable in the conditions.
        """
        self.evaluations += chosen.numel()
        rows = torch.arange(len(chosen), device=chosen.device).repeat_interleave(chosen.shape[1])
        path = self._fast_path if conditions.ndim == 2 and self.bias_matrix is not None else self._plain_path
        with _own_dtype(noisy_latents):
            evaluate, brought = path(noisy_latents.to(self.dtype), timesteps, conditions)
            brought = brought[chosen.flatten()]  # (B * M, ...)
            plan = self._plan(evaluate, rows, brought)
            flat = predict_in_chunks(evaluate, rows, brought, plan, pad=self._compiled)
        return _full(flat).unflatten(0, chosen.shape)  # (B, M, 4, h, w)

    def _fast_path(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> tuple[Evaluate, Tensor]:
        """Turns each condition into one bias vector a layer: (K, L)."""
        matrix = self.bias_matrix
        assert matrix is not None
        beginning = begin(self.unet, noisy_latents, timesteps, len(matrix), self._added(noisy_latents))

        def evaluate(rows: Tensor, biases: Tensor) -> Tensor:
            with _own_dtype(biases):
                return self._finish(self.unet, beginning.of(rows), biases.to(self.dtype))

        return evaluate, F.linear(conditions.to(matrix.dtype), matrix)

    def _plain_path(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> tuple[Evaluate, Tensor]:
        """Passes the condition unchanged, (K, 77 + M, C) or c as (K, 1, C): E + c and its own tokens go through the
        UNet's own cross-attention. Right for any condition."""
        added = self._added(noisy_latents)

        def evaluate(rows: Tensor, conditions: Tensor) -> Tensor:
            with _own_dtype(conditions):
                shared, own = conditions.to(self.dtype).tensor_split([self.prompt_length], dim=1)
                tokens = torch.cat([self.empty_prompt + shared, own], dim=1)  # (P, 77 + M, C)
                return self._forward(
                    noisy_latents[rows], timesteps[rows], tokens, added_cond_kwargs=added, return_dict=False
                )[0]

        return evaluate, conditions[:, None] if conditions.ndim == 2 else conditions

    def _added(self, noisy_latents: Tensor) -> dict[str, Tensor] | None:
        """SD-XL's other inputs, the same for all latents; None for other denoisers."""
        if self.pooled_prompt is None:
            return None
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels a latent's side
        return {"text_embeds": self.pooled_prompt, "time_ids": time_ids(noisy_latents, scale)}

    def _plan(self, evaluate: Evaluate, rows: Tensor, brought: Tensor) -> ChunkPlan:
        """The plan for this number and kind of pairs, made once, so that all steps of a run have the same chunks."""
        key = (self.pair_chunk_size, *brought.shape)
        if key not in self._plans:
            size, compiled = self.pair_chunk_size, (self._finish, self._forward)
            self._finish, self._forward = finish, self.unet.forward  # a probe's shape would be a graph more
            plan = make_plan(evaluate, rows, brought) if size == "auto" else ChunkPlan(size or len(rows))
            self._plans[key], (self._finish, self._forward) = plan, compiled
        return self._plans[key]

    def reset_chunk_plans(self) -> None:
        """Forget the measured plans: call it when another model shares the device's memory with the pairs."""
        self._plans.clear()

    def compile_unet(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compile what every chunk runs, for one fixed shape: the last chunk is padded from now on."""
        self._finish = torch.compile(finish, backend=backend, mode=mode, dynamic=False)
        self._forward = torch.compile(self.unet.forward, backend=backend, mode=mode, dynamic=False)
        self._compiled = True


def _full(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _own_dtype(tensor: Tensor) -> torch.autocast:
    """A context without autocast. Re-entered on recomputation, where autocast may differ."""
    return torch.autocast(tensor.device.type, enabled=False)
