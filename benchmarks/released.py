"""The baseline: a DCR step in the manner of the authors' released code. Written here; only the manner is theirs.

The views are made one image at a time on the CPU, the prompt is encoded at every step, the B * B pairs go through the
plain UNet in one call and the views in a second one, nothing is chunked, and the loss is exp, ratio, log.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel

from dcr_hf.data.augment import PositiveView
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives import Diffused


class ReleasedStep:
    """Takes the place of DCRTrainer.compute_loss.

    Args:
        unet: untouched by the fast path.
        text_encoder: encodes the empty prompt.
        denoiser: for latents and noise.
        view: makes one view.
    """

    def __init__(
        self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, denoiser: FrozenDenoiser, view: PositiveView
    ):
        self.unet, self.text_encoder, self.denoiser, self.view = unet, text_encoder, denoiser, view

    def __call__(self, model, images: Tensor) -> Tensor:
        views = torch.cat([self.view(image[None].cpu()) for image in images]).to(images.device)
        conditions, view_conditions = model(images).conditions, model(views).conditions
        return self.loss(Diffused.draw(self.denoiser, images), conditions, view_conditions)

    def loss(self, diffused: Diffused, conditions: Tensor, view_conditions: Tensor) -> Tensor:
        batch = len(conditions)
        prompt = empty_prompt(self.text_encoder)
        n, t = diffused.noisy_latents, diffused.timesteps
        every = conditions.repeat(batch, 1)
        predictions = self._predict(prompt, n.repeat_interleave(batch, 0), t.repeat_interleave(batch), every)
        views = self._predict(prompt, n, t, view_conditions)
        predictions = F.normalize(predictions.view(batch, batch, -1), dim=-1)
        views, target = (F.normalize(tensor.flatten(1), dim=-1) for tensor in (views, diffused.target))
        losses = []
        for i in range(batch):
            anchor = predictions[i, i]
            others = torch.cat([predictions[i, :i], predictions[i, i + 1 :]])
            positives = torch.exp(torch.stack([anchor @ views[i], anchor @ target[i]]) / 0.1)
            negatives = torch.exp(others @ anchor / 0.1)
            losses.append(-torch.log(positives / (positives.sum() + negatives.sum())).mean())
        return torch.stack(losses).mean()

    def _predict(self, prompt: Tensor, noisy: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        dtype = self.unet.dtype  # type: ignore[attr-defined]  # diffusers wraps it
        tokens = prompt + conditions[:, None].to(dtype)
        return self.unet(noisy.to(dtype), timesteps, tokens).sample.float()  # type: ignore[operator]  # diffusers wraps it


@torch.no_grad()
def empty_prompt(text_encoder: CLIPTextModel) -> Tensor:
    """E (1, 77, C), of any 77 tokens: the weights are random."""
    return text_encoder(torch.zeros(1, 77, dtype=torch.long, device=text_encoder.device)).last_hidden_state
