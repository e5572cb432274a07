"""The exact fast path through a frozen UNet: a condition that is the same for all tokens is one bias vector a layer.

Softmax does not see what is added to every token's key alike, so in each cross-attention layer

    attn2(q | E + 1 c) = attn2(q | E) + W_out W_v c

Keys and values of the empty prompt E are constants, `W_out W_v` is one small matrix a layer, and nothing before the
first bias depends on the condition: it is computed once for a noisy latent and shared by all its conditions.
"""

from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

# What `begin` and `finish` walk; other values mean inputs or layers that they do not know.
_WITH_ATTENTION = (CrossAttnDownBlock2D, CrossAttnUpBlock2D)
_WALKED = {
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "dual_cross_attention": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}


class EmptyPromptAttention(nn.Module):
    """An attention processor for a cross-attention layer: attention to E, plus the condition's bias.

    Tokens (P, N, C) instead of biases (P, L) go through diffusers' own processor.

    Args:
        attention: the layer; its keys and values of E are computed here.
        empty_prompt: E (1, 77, C).
        columns: the layer's own part of all layers' biases.
    """

    def __init__(self, attention: Attention, empty_prompt: Tensor, columns: slice):
        super().__init__()
        self.columns = columns
        self.plain = AttnProcessor2_0()
        self.register_buffer("key", _by_head(attention.to_k(empty_prompt), attention.heads), persistent=False)
        self.register_buffer("value", _by_head(attention.to_v(empty_prompt), attention.heads), persistent=False)

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        if encoder_hidden_states.ndim == 3:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask)
        query = _by_head(attn.to_q(hidden_states), attn.heads)  # (P, heads, N, width)
        every = (len(query), -1, -1, -1)
        attended = F.scaled_dot_product_attention(query, self.key.expand(every), self.value.expand(every))
        output = attn.to_out[0](attended.transpose(1, 2).flatten(2))  # (P, N, C_layer)
        return output + encoder_hidden_states[:, None, self.columns]


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """(P, N, heads * width) -> (P, heads, N, width)"""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


@torch.no_grad()
def install(unet: UNet2DConditionModel, empty_prompt: Tensor) -> Tensor:
    """Give every cross-attention layer of `unet` its `EmptyPromptAttention`.

    Returns:
        (L, C), the matrices W_out W_v of all layers below each other, in float32 at least; L is the sum of the layers'
        widths. A condition's biases are this times c.

    Raises:
        ValueError: a UNet with inputs or layers that Stable Diffusion 1.x and 2.x do not have.
    """
    odd = {name: unet.config[name] for name, value in _WALKED.items() if unet.config[name] != value}
    if odd or unet.config.down_block_types[0] != "CrossAttnDownBlock2D":
        raise ValueError(
            f"the denoiser's UNet is not that of a Stable Diffusion 1.x or 2.x: it has {odd or 'no attention first'}."
        )
    matrices, start = [], 0
    for attention in (layer for name, layer in unet.named_modules() if name.endswith(".attn2")):
        out = attention.to_out[0].weight
        dtype = torch.promote_types(out.dtype, torch.float32)
        matrices.append(out.to(dtype) @ attention.to_v.weight.to(dtype))  # (C_layer, C)
        columns = slice(start, start + len(out))
        attention.set_processor(EmptyPromptAttention(attention, empty_prompt, columns))
        start = columns.stop
    return torch.cat(matrices)


class Beginning(NamedTuple):
    """What a noisy latent's conditions share: the UNet up to its first bias. h, w as the latent's."""

    time: Tensor
    """(B, T), the embedded timestep"""
    skip: Tensor
    """(B, C_0, h, w), the first skip connection"""
    residual: Tensor
    """(B, C_0, h, w), around the first transformer"""
    hidden: Tensor
    """(B, h * w, C_0), inside the first transformer, after its cross-attention to E"""

    def of(self, rows: Tensor) -> "Beginning":
        return Beginning(*(tensor[rows] for tensor in self))


@torch.no_grad()
def begin(unet: UNet2DConditionModel, noisy_latents: Tensor, timesteps: Tensor, width: int) -> Beginning:
    """The UNet's first convolution, residual block, self-attention and cross-attention, without the bias.

    Args:
        unet: after `install`.
        noisy_latents: (B, 4, h, w), in the UNet's dtype.
        timesteps: (B,).
        width: L, of all layers' biases.
    """
    time = unet.time_embedding(unet.time_proj(timesteps).to(noisy_latents.dtype))
    skip = unet.conv_in(noisy_latents)
    block = unet.down_blocks[0]
    residual = block.resnets[0](skip, time)
    transformer = block.attentions[0]
    layer = transformer.transformer_blocks[0]
    hidden, _ = transformer._operate_on_continuous_inputs(residual)
    hidden = hidden + layer.attn1(layer.norm1(hidden))
    hidden = hidden + layer.attn2(layer.norm2(hidden), encoder_hidden_states=hidden.new_zeros(1, width))
    return Beginning(time, skip, residual, hidden)


def finish(unet: UNet2DConditionModel, beginning: Beginning, biases: Tensor) -> Tensor:
    """The rest of the UNet's forward pass, from the first bias on.

    Args:
        unet: after `install`.
        beginning: of each pair's latent.
        biases: (P, L), of each pair's condition.

    Returns:
        (P, 4, h, w)
    """
    time, skip, residual, hidden = beginning
    block = unet.down_blocks[0]
    sample = _finish_first_transformer(block.attentions[0], residual, hidden, biases)
    skips = [skip, sample]
    for resnet, transformer in zip(block.resnets[1:], block.attentions[1:], strict=True):
        sample = transformer(resnet(sample, time), encoder_hidden_states=biases, return_dict=False)[0]
        skips.append(sample)
    for downsampler in block.downsamplers:
        sample = downsampler(sample)
        skips.append(sample)
    for block in unet.down_blocks[1:]:
        sample, block_skips = block(sample, time, **_conditions_of(block, biases))
        skips += block_skips
    sample = unet.mid_block(sample, time, encoder_hidden_states=biases)
    for block in unet.up_blocks:
        count = len(block.resnets)
        own, skips = tuple(skips[-count:]), skips[:-count]
        # Odd latents (28 -> 14 -> 7 -> 4) cannot simply be doubled on the way up.
        size = skips[-1].shape[2:] if skips else None
        sample = block(sample, own, time, upsample_size=size, **_conditions_of(block, biases))
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


def _finish_first_transformer(transformer: nn.Module, residual: Tensor, hidden: Tensor, biases: Tensor) -> Tensor:
    first, *others = transformer.transformer_blocks
    hidden = hidden + biases[:, None, first.attn2.processor.columns]
    hidden = hidden + first.ff(first.norm3(hidden))
    for layer in others:
        hidden = layer(hidden, encoder_hidden_states=biases)
    shape = residual.shape
    return transformer._get_output_for_continuous_inputs(
        hidden, residual, shape[0], shape[2], shape[3], hidden.shape[-1]
    )


def _conditions_of(block: nn.Module, biases: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": biases} if isinstance(block, _WITH_ATTENTION) else {}
