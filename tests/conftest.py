"""Tiny random models, saved as the real folders they stand for, and shards of real photographs. Built once a run."""

import io
import json
import os
import tarfile
from pathlib import Path

# Before torch is imported, here and in every process that a test starts: in two test processes on two cores, threads
# for tiny tensors mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import pytest
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
from PIL import Image
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

from dcr_hf import DCRConfig, FrozenDenoiser
from dcr_hf.objectives import Batch, Diffused

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


def photographs(count: int, side: int = 96) -> list[Image.Image]:
    """`count` different crops of the photographs that ship in scikit-learn and scikit-image."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    sources = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    crops = []
    for index in range(count):
        source = sources[index % len(sources)]
        step = index // len(sources)
        top = (step * 53) % (source.shape[0] - side)
        left = (step * 101) % (source.shape[1] - side)
        crops.append(Image.fromarray(source[top : top + side, left : left + side]))
    return crops


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_shard(path: Path, samples: dict[str, bytes | dict[str, bytes]]) -> Path:
    """A shard as img2dataset writes it. A value is the .jpg's bytes, or {extension: bytes} for anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            if isinstance(members, bytes):
                members = {"jpg": members, "txt": b"a photo", "json": json.dumps({"key": key}).encode()}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def diffused_at_random(denoiser: FrozenDenoiser, batch: int, seed: int = 0) -> Diffused:
    """Latents of 4 x 4, without the detour over images."""
    generator = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, batch, 4, 4, 4, generator=generator)
    timesteps = torch.randint(1000, (batch,), generator=generator)
    noisy, target = (make(latents, noise, timesteps) for make in (denoiser.add_noise, denoiser.target))
    return Diffused(latents, noisy, timesteps, noise, target)


def batch_of_conditions(diffused: Diffused, conditions: torch.Tensor, view_conditions: torch.Tensor) -> Batch:
    """For objectives that do not look at embeddings: these are NaN."""
    embeddings = conditions.new_full((len(conditions), EMBEDDING_WIDTH["clip"]), float("nan"))
    return Batch(embeddings, embeddings, conditions, view_conditions, lambda: diffused)


def short_run(folder: Path, **options) -> DCRConfig:
    """Three steps of four images on the CPU that save nothing, but for what `options` say."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return DCRConfig(**(defaults | options))


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def clip_folder(models_folder) -> Path:
    return save_clip(models_folder / "clip-tiny")


@pytest.fixture(scope="session")
def siglip_folder(models_folder) -> Path:
    return save_siglip(models_folder / "siglip-tiny")


@pytest.fixture(scope="session")
def encoder_folders(clip_folder, siglip_folder) -> dict[str, Path]:
    return {"clip": clip_folder, "siglip": siglip_folder}


@pytest.fixture(scope="session")
def sd_folder(models_folder) -> Path:
    return save_stable_diffusion(models_folder / "sd-tiny")


@pytest.fixture(scope="session")
def sd_v_folder(models_folder) -> Path:
    return save_stable_diffusion(models_folder / "sd-tiny-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def sd_xl_folder(models_folder) -> Path:
    return save_stable_diffusion(models_folder / "sd-tiny-xl", version="xl")


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory) -> Path:
    """Three shards of 16 photographs in CC3M's layout, with three broken members among them."""
    folder = tmp_path_factory.mktemp("cc3m")
    images = [encoded(image, quality=90) for image in photographs(48)]
    for shard in range(3):
        samples = {f"{shard:05d}{i:04d}": images[shard * 16 + i] for i in range(16)}
        samples[f"{shard:05d}0003"] = {
            0: images[3][: len(images[3]) // 3],  # truncated
            1: b"<html><body>404</body></html>",
            2: b"",
        }[shard]
        write_shard(folder / f"{shard:05d}.tar", samples)
    return folder


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory) -> Path:
    """Tables that `datasets` converts stay out of the user's cache, here and in what a test starts."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["HF_DATASETS_CACHE"] = str(datasets.config.HF_DATASETS_CACHE)
    return datasets.config.HF_DATASETS_CACHE


def pytest_addoption(parser):
    parser.addoption("--crashes", type=int, default=10, help="how often the crash test kills a run")


# Files that take a minute and more, the longest first.
LONG = [f"tests/{name}.py" for name in ("test_resume", "test_strategies", "test_run", "test_trainer")]


def pytest_collection_modifyitems(items):
    """A test process takes the next file when it is through with one: long ones first, and both end together."""
    files = {item: item.nodeid.split("::")[0] for item in items}
    items.sort(key=lambda item: LONG.index(files[item]) if files[item] in LONG else len(LONG))
