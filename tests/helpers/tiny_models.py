"""Tiny random models, saved as the real folders they stand for."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

IMAGE_SIZE = 32
EMBEDDING_WIDTH = {"clip": 16, "siglip": 24}
CONDITION_WIDTH = 32  # the tiny UNet's cross_attention_dim
SECOND_TEXT_WIDTH, POOLED_WIDTH = 20, 16  # of the tiny SD-XL's second text encoder
# Statistics that are nobody's default, so that a test sees which ones are used.
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def clip_tokenizer(**special_tokens: str) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer with no merges: every string is tokenizable, 77 tokens at most."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77, **special_tokens)


def save_clip(folder: Path, seed: int = 0, image_size: int = IMAGE_SIZE, patch_size: int = 8, width: int = 24) -> Path:
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "initializer_factor": 4.0}
    config = CLIPConfig(
        text_config={
            "hidden_size": 20,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **tower,
        },
        vision_config={"hidden_size": width, "image_size": image_size, "patch_size": patch_size, **tower},
        projection_dim=EMBEDDING_WIDTH["clip"],
    )
    CLIPModel(config).save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size=side, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_siglip(
    folder: Path,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    patch_size: int = 8,
    width: int = EMBEDDING_WIDTH["siglip"],
) -> Path:
    torch.manual_seed(seed)
    letters = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789.,'-?"]
    backend = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = SiglipConfig(
        text_config={
            "hidden_size": width,
            "vocab_size": len(letters),
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **tower,
        },
        vision_config={"hidden_size": width, "image_size": image_size, "patch_size": patch_size, **tower},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# What differs between the real UNets: 1.x has convolutions around its transformers and as many heads everywhere, 2.x
# linear layers and more heads the deeper it is, XL no attention at its first level and more layers in a transformer.
UNETS = {
    1: {"attention_head_dim": 2},
    2: {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "xl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16, 32),
        "layers_per_block": 2,
        "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 2, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * 8,
    },
}


def save_stable_diffusion(
    folder: Path, prediction_type: str = "epsilon", seed: int = 0, version: int | str = 2, **index
) -> Path:
    """A full pipeline folder in the layout of SD 1.x, 2.x (with velocity: of 2.1 at 768 pixels) or XL.

    Args:
        version: 1, 2 or "xl".
        index: of XL's model_index.json.
    """
    torch.manual_seed(seed)
    unet = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": CONDITION_WIDTH,
        "upcast_attention": prediction_type == "v_prediction",
    } | UNETS[version]
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.13025 if version == "xl" else 0.18215,
    )
    tokenizer = clip_tokenizer()
    parts = {"unet": UNet2DConditionModel(**unet), "vae": vae, "scheduler": scheduler_of(version, prediction_type)}
    parts["tokenizer"] = tokenizer
    if version == "xl":
        first = CONDITION_WIDTH - SECOND_TEXT_WIDTH
        parts["text_encoder"] = CLIPTextModel(text_config(tokenizer, first))
        parts["tokenizer_2"] = clip_tokenizer(pad_token="!")
        second = text_config(tokenizer, SECOND_TEXT_WIDTH, projection_dim=POOLED_WIDTH)
        parts["text_encoder_2"] = CLIPTextModelWithProjection(second)
        StableDiffusionXLPipeline(**parts, add_watermarker=False, **index).save_pretrained(folder)
    else:
        parts["text_encoder"] = CLIPTextModel(text_config(tokenizer, CONDITION_WIDTH))
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        StableDiffusionPipeline(**parts, **unused).save_pretrained(folder)
    return folder


def text_config(tokenizer: CLIPTokenizer, width: int, **more) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def scheduler_of(version: int | str, prediction_type: str) -> SchedulerMixin:
    """The class that the real folder names, with Stable Diffusion's schedule."""
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    if version == "xl":
        return EulerDiscreteScheduler(**options, prediction_type=prediction_type)
    if prediction_type == "v_prediction":
        return DDIMScheduler(**options, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False)
    return PNDMScheduler(**options, prediction_type=prediction_type, skip_prk_steps=True)
