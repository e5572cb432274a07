"""The exact fast path through a frozen UNet: a condition that is the same for all tokens is one bias vector a layer.

Softmax is invariant to a constant added to every token's key, so in each cross-attention layer

    attn2(q | E + 1 c) = attn2(q | E) + W_out W_v c

Keys and values of the empty prompt E are constants, `W_out W_v` is one small matrix a layer, and nothing before the
first bias depends on the condition: it is computed once for a noisy latent and shared by all its conditions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

_WITH_ATTENTION = (CrossAttnDownBlock2D, CrossAttnUpBlock2D)
_BLOCKS = {
    "down_block_types": {"DownBlock2D", "CrossAttnDownBlock2D"},
    "up_block_types": {"UpBlock2D", "CrossAttnUpBlock2D"},
}
# The configurations where a condition is one bias a layer (with `only_cross_attention` the tokens also enter the
# self-attention), and where `begin` and `finish` run all layers.
_WALKED = {
    "attention_type": "default",
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "time_embedding_act_fn": None,
}


def why_not_exact(config: Mapping[str, Any]) -> str | None:
    """Why the fast path is not exact for a UNet of this configuration; None where it is, as for SD 1.x, 2.x and XL."""
    odd = [f"{name} {config[name]!r}" for name, value in _WALKED.items() if config[name] != value]
    odd += [f"{name} {config[name]}" for name, known in _BLOCKS.items() if not known.issuperset(config[name])]
    if "CrossAttnDownBlock2D" not in config["down_block_types"]:
        odd.append("no cross-attention on the way down")
    return ", ".join(odd) or None


class EmptyPromptAttention(nn.Module):
    """An attention processor for a cross-attention layer: attention to E, plus the condition's bias.

    Given tokens (P, N, C) instead of biases (P, L), it runs diffusers' own processor.

    Args:
        attention: the layer; its keys and values of E are computed here.
        empty_prompt: E (1, 77, C).
        columns: this layer's part of all layers' biases.

    Attributes:
        key, value: (heads, 77, width). Not (1, heads, 77, width): a UNet that is put into channels-last would reorder
            those too, and no fused attention takes them then.
        copies: whether each pair gets a copy of them, see `shared_keys`.
    """

    key: Tensor
    value: Tensor

    def __init__(self, attention: Attention, empty_prompt: Tensor, columns: slice):
        super().__init__()
        self.columns = columns
        self.plain = AttnProcessor2_0()
        self.copies = False
        for name, project in (("key", attention.to_k), ("value", attention.to_v)):
            self.register_buffer(name, _by_head(project(empty_prompt), attention.heads).squeeze(0), persistent=False)

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
        output = attn.to_out[0](self.attend(query).transpose(1, 2).flatten(2))  # (P, N, C_layer)
        return output + encoder_hidden_states[:, None, self.columns]

    def attend(self, query: Tensor) -> Tensor:
        """Attention to E, (P, heads, N, width) as the query."""
        key, value = (tensor.expand(len(query), -1, -1, -1) for tensor in (self.key, self.value))
        if self.copies:
            key, value = key.contiguous(), value.contiguous()
        return F.scaled_dot_product_attention(query, key, value)


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """(P, N, heads * width) -> (P, heads, N, width)"""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


@torch.no_grad()
def install(unet: UNet2DConditionModel, empty_prompt: Tensor) -> Tensor:
    """Give every cross-attention layer of `unet` its `EmptyPromptAttention`; needs `why_not_exact` to be None.

    Returns:
        (L, C), the matrices W_out W_v of all layers, stacked, in float32 at least; L is the sum of the layers' widths.
        This matrix times c gives a condition's biases.
    """
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
    """The UNet up to its first bias, which a noisy latent's conditions share. h, w are those of that level."""

    time: Tensor
    """(B, T), the time embedding, additions included"""
    skips: tuple[Tensor, ...]
    """(B, C_level, h_level, w_level) each, the skip connections so far"""
    residual: Tensor
    """(B, C_0, h, w), around the first transformer"""
    hidden: Tensor
    """(B, h * w, C_0), inside the first transformer, after its cross-attention to E"""

    def of(self, rows: Tensor) -> "Beginning":
        return Beginning(
            self.time[rows], tuple(skip[rows] for skip in self.skips), self.residual[rows], self.hidden[rows]
        )


@torch.no_grad()
def begin(
    unet: UNet2DConditionModel,
    noisy_latents: Tensor,
    timesteps: Tensor,
    width: int,
    added: dict[str, Tensor] | None = None,
) -> Beginning:
    """The UNet's forward pass up to its first bias: convolution, levels without attention, then residual block,
    self-attention and cross-attention of the first transformer.

    Args:
        unet: after `install`.
        noisy_latents: (B, 4, h, w), in the UNet's dtype.
        timesteps: (B,).
        width: L, of all layers' biases.
        added: the UNet's `added_cond_kwargs`. They enter the time embedding alone, as no condition does.
    """
    time = unet.time_embedding(unet.time_proj(timesteps).to(noisy_latents.dtype))
    addition = unet.get_aug_embed(time, None, added)  # type: ignore[arg-type]  # None is allowed
    time = time if addition is None else time + addition
    skips = (unet.conv_in(noisy_latents),)
    first = _first_with_attention(unet)
    for plain_block in unet.down_blocks[:first]:
        skips += plain_block(skips[-1], time)[1]
    block: Any = unet.down_blocks[first]
    residual = block.resnets[0](skips[-1], time)
    transformer = block.attentions[0]
    layer = transformer.transformer_blocks[0]
    hidden, _ = transformer._operate_on_continuous_inputs(residual)
    hidden = hidden + layer.attn1(layer.norm1(hidden))
    hidden = hidden + layer.attn2(layer.norm2(hidden), encoder_hidden_states=hidden.new_zeros(1, width))
    return Beginning(time, skips, residual, hidden)


def finish(unet: UNet2DConditionModel, beginning: Beginning, biases: Tensor) -> Tensor:
    """The rest of the UNet's forward pass, from the first bias.

    Args:
        unet: after `install`.
        beginning: of each pair's latent.
        biases: (P, L), of each pair's condition.

    Returns:
        (P, 4, h, w)
    """
    time, first_skips, residual, hidden = beginning
    first = _first_with_attention(unet)
    block: Any = unet.down_blocks[first]
    sample = _finish_first_transformer(block.attentions[0], residual, hidden, biases)
    skips = [*first_skips, sample]
    for resnet, transformer in zip(block.resnets[1:], block.attentions[1:], strict=True):
        sample = transformer(resnet(sample, time), encoder_hidden_states=biases, return_dict=False)[0]
        skips.append(sample)
    for downsampler in block.downsamplers or ():  # the last level has none
        sample = downsampler(sample)
        skips.append(sample)
    for block in unet.down_blocks[first + 1 :]:
        sample, block_skips = block(sample, time, **_conditions_of(block, biases))
        skips += block_skips
    sample = unet.mid_block(sample, time, encoder_hidden_states=biases)
    for block in unet.up_blocks:
        count = len(block.resnets)
        own, skips = tuple(skips[-count:]), skips[:-count]
        # Odd sizes (28 -> 14 -> 7 -> 4) are not restored by doubling.
        size = skips[-1].shape[2:] if skips else None
        sample = block(sample, own, time, upsample_size=size, **_conditions_of(block, biases))
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


def _first_with_attention(unet: UNet2DConditionModel) -> int:
    return next(number for number, block in enumerate(unet.down_blocks) if isinstance(block, CrossAttnDownBlock2D))


def _finish_first_transformer(transformer: Any, residual: Tensor, hidden: Tensor, biases: Tensor) -> Tensor:
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
