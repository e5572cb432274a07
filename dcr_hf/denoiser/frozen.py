"""The frozen Stable Diffusion: images -> latents, noise and target; predictions for pairs of latent and condition."""

import logging
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from dcr_hf.denoiser.chunks import ChunkPlan, Evaluate, predict_in_chunks
from dcr_hf.denoiser.fast_path import begin, finish, install, why_not_exact
from dcr_hf.denoiser.pipeline import check_denoiser, embed_empty_prompt, load_scheduler, load_unet, load_vae
from dcr_hf.denoiser.planner import make_plan
from dcr_hf.denoiser.schedule import NoiseSchedule, NoiseTarget

logger = logging.getLogger(__name__)

PairChunkSize = int | Literal["auto"]


class FrozenDenoiser(NoiseSchedule):
    """A frozen Stable Diffusion that predicts noise (or velocity) under conditions made from images.

    A condition c (C,) is added to every token of the empty prompt's embedding E (77, C); `fast_path` has the cheaper
    way to the same predictions. It may bring tokens of its own too (`with_tokens`). The denoiser is never a child of
    the trained module: it holds no trainable weight, and checkpoints and ZeRO must not see it. It computes in its own
    dtype, whatever autocast is active, and returns float32.

    Attributes:
        condition_width: C, the UNet's `cross_attention_dim`.
        empty_prompt: E (1, 77, C), zeros in an SD-XL that was trained so, see `pipeline.embed_empty_prompt`.
        token_norm: the mean norm of the text encoder's tokens of the empty prompt.
        pooled_prompt: (1, P), what SD-XL gets beside the tokens; None elsewhere.
        bias_matrix: (L, C), turns a condition into its biases of all cross-attention layers; None where the UNet's
            layers are such that the fast path would not be exact, and all conditions take the plain one.
        pair_chunk_size: pairs that go through the UNet at once; 0 for all. All chunks but the last are recomputed in
            the backward pass, so that the chunk and not B * B sets the peak memory. "auto": by what is free, see
            `planner`.
        evaluations: forward passes of the UNet asked for so far, recomputations not counted.
    """

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
        self.unet = unet.to(memory_format=torch.channels_last)
        self.vae = vae.to(memory_format=torch.channels_last)
        self.condition_width: int = unet.config.cross_attention_dim
        self.pair_chunk_size = pair_chunk_size
        self.evaluations = 0
        self.register_buffer("empty_prompt", empty_prompt.to(unet.dtype), persistent=False)
        pooled_prompt = None if pooled_prompt is None else pooled_prompt.to(unet.dtype)
        self.register_buffer("pooled_prompt", pooled_prompt, persistent=False)
        self.token_norm = empty_prompt.float().norm(dim=-1).mean().item() if token_norm is None else token_norm
        self.requires_grad_(False).eval()
        reason = why_not_exact(unet.config)
        if reason:
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
    ) -> "FrozenDenoiser":
        """Load a diffusers Stable Diffusion 1.x, 2.x or XL folder or id, on the CPU.

        Args:
            path_or_id: folder or hub id with unet, vae, scheduler, tokenizer and text_encoder, and an XL's second ones
                (safetensors).
            dtype: of UNet, VAE and empty prompt; by default bfloat16 where there is a GPU, else float32. A VAE whose
                configuration asks for it (`force_upcast`: its activations leave float16's range, as SD-XL's do) is
                float32 in place of float16.
            noise_target: "auto" is what the scheduler says that the model predicts.
            pair_chunk_size: see the class.
        """
        check_denoiser(path_or_id)
        if dtype is None:
            dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        prompt = embed_empty_prompt(path_or_id)
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

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def prompt_length(self) -> int:
        """How many tokens E has: 77 in every Stable Diffusion."""
        return self.empty_prompt.shape[1]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> sampled, scaled latents l (B, 4, h, w), float32."""
        with _own_dtype(images):
            posterior = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist
            return posterior.sample().float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> images (B, 3, H, W), about in [0, 1], float32."""
        with _own_dtype(latents):
            return (
                self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float() / 2 + 0.5
            )

    def with_tokens(self, conditions: Tensor, tokens: Tensor | None) -> Tensor:
        """Conditions that bring tokens of their own, in the form that the predictions take.

        Args:
            conditions: c (B, C), added to every token of the empty prompt.
            tokens: (B, M, C), which the cross-attention sees beside those; None for c alone.

        Returns:
            (B, 77 + M, C), or c as it came.
        """
        if tokens is None:
            return conditions
        return torch.cat([conditions[:, None].expand(-1, self.prompt_length, -1), tokens], dim=1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """The prediction for each noisy latent under its own condition.

        Args:
            noisy_latents: n (B, 4, h, w).
            timesteps: t (B,).
            conditions: c (B, C), or others of `predict_chosen`'s.

        Returns:
            (B, 4, h, w), float32, differentiable in the conditions.
        """
        own = torch.arange(len(noisy_latents), device=noisy_latents.device)[:, None]
        return self.predict_chosen(noisy_latents, timesteps, conditions, own).squeeze(1)

    def predict_pairs(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """P: the prediction for every noisy latent under every condition.

        Args:
            noisy_latents: n (B, 4, h, w).
            timesteps: t (B,).
            conditions: c (K, C), or others of `predict_chosen`'s.

        Returns:
            (B, K, 4, h, w), float32, differentiable in the conditions.
        """
        every = torch.arange(len(conditions), device=noisy_latents.device).expand(len(noisy_latents), -1)
        return self.predict_chosen(noisy_latents, timesteps, conditions, every)

    def predict_chosen(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor, chosen: Tensor) -> Tensor:
        """The predictions for every noisy latent under conditions of its own choice.

        Conditions that are the same for all tokens take the fast path (`fast_path`) through a UNet where that is
        exact, others the plain one: with `conditions[:, None].expand(-1, 77, -1)` the two can be compared.

        Args:
            noisy_latents: n (B, 4, h, w).
            timesteps: t (B,).
            conditions: c (K, C); or (K, 77, C) with one vector a token; or (K, 77 + M, C), whose last M are tokens
                that stand beside those of E, see `with_tokens`.
            chosen: (B, M), [i, m] is the number of the m-th condition of latent i.

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
        return flat.float().unflatten(0, chosen.shape)  # (B, M, 4, h, w)

    def _fast_path(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> tuple[Evaluate, Tensor]:
        """A condition brings one bias vector a layer: (K, L)."""
        beginning = begin(self.unet, noisy_latents, timesteps, len(self.bias_matrix), self._added(noisy_latents))

        def evaluate(rows: Tensor, biases: Tensor) -> Tensor:
            with _own_dtype(biases):
                return self._finish(self.unet, beginning.of(rows), biases.to(self.dtype))

        return evaluate, F.linear(conditions.to(self.bias_matrix.dtype), self.bias_matrix)

    def _plain_path(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Tensor) -> tuple[Evaluate, Tensor]:
        """Right for any condition: E + c, and the tokens that stand beside, through the UNet's own cross-attention. A
        condition brings itself: (K, 77 + M, C), or c as (K, 1, C)."""
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
        """SD-XL's other inputs, for all latents alike: the pooled prompt, and the size of images that were as large as
        these, seen whole: (height, width, top 0, left 0, height, width) in pixels, (1, 6)."""
        if self.pooled_prompt is None:
            return None
        pixels = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = (pixels * side for side in noisy_latents.shape[-2:])
        # Filled on the device: a list would have to be copied there at every step.
        ids = [torch.full((1,), size, device=noisy_latents.device) for size in (height, width, 0, 0, height, width)]
        return {"text_embeds": self.pooled_prompt, "time_ids": torch.stack(ids, dim=1)}

    def _plan(self, evaluate: Evaluate, rows: Tensor, brought: Tensor) -> ChunkPlan:
        """Made once for each number and kind of pairs, so that all steps of a run have the same chunks."""
        key = (self.pair_chunk_size, *brought.shape)
        if key not in self._plans:
            automatic = self.pair_chunk_size == "auto"
            self._plans[key] = (
                make_plan(evaluate, rows, brought) if automatic else ChunkPlan(self.pair_chunk_size or len(rows))
            )
        return self._plans[key]

    def reset_chunk_plans(self) -> None:
        """Forget what was measured: another model has to fit beside the pairs now."""
        self._plans.clear()

    def compile_unet(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compile what every chunk runs, for one fixed shape: the last chunk is filled up from now on."""
        self._finish = torch.compile(finish, backend=backend, mode=mode, dynamic=False)
        self._forward = torch.compile(self.unet.forward, backend=backend, mode=mode, dynamic=False)
        self._compiled = True


def _own_dtype(tensor: Tensor) -> torch.autocast:
    """No autocast. Said again in what the backward pass recomputes, which may run under another one."""
    return torch.autocast(tensor.device.type, enabled=False)
