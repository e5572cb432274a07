"""The models of the stages: what is frozen and what is trained."""

import torch

from dcr_hf.config import DCRConfig
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import Projector


def projector_stage(
    encoder: ImageEncoder, condition_width: int, seed: int, patch_keep_ratio: float | None = None
) -> ConditionModel:
    """Stage 1: a fresh projector is trained on the frozen encoder; with a ratio, one of patches too."""
    torch.manual_seed(seed)
    patch_width = None if patch_keep_ratio is None else encoder.patch_width
    return ConditionModel(encoder, Projector(encoder.embedding_width, condition_width, patch_width), patch_keep_ratio)


def encoder_stage(encoder: ImageEncoder, projector: Projector, args: DCRConfig) -> ConditionModel:
    """Stage 2: the vision encoder is trained through the frozen projector, by LoRA or (rank 0) itself."""
    torch.manual_seed(args.seed)
    if args.asks_original and not (args.lora_rank and args.lora_bias == "none"):
        encoder.keep_original()  # without its adapters, the model is not the original
    if args.lora_rank:
        encoder.add_lora(args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_bias)
    else:
        encoder.unfreeze()
    return ConditionModel(encoder, projector.requires_grad_(False), args.patch_ratio)


def end_to_end_stage(encoder: ImageEncoder, condition_width: int, args: DCRConfig) -> ConditionModel:
    """A fresh projector and the encoder together, from the start."""
    projector = projector_stage(encoder, condition_width, args.seed, args.patch_ratio).projector
    model = encoder_stage(encoder, projector, args)
    projector.requires_grad_(True)
    return model
