"""OpenAI-format weights: the converted model computes what a plain OpenAI CLIP computes; nothing is unpickled."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel

from dcr_hf.convert import convert, convert_names, read_state_dict
from dcr_hf.convert.__main__ import main
from dcr_hf.convert.openai_format import infer_config
from dcr_hf.errors import UserError
from helpers.tiny_models import MEAN, clip_tokenizer


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 2 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(2 * width, width))

    def forward(self, x, mask=None):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width=128, patch=8, side=4, out=24):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(side * side + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(width, 2)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """The published architecture, its names and its layouts, written plainly."""

    def __init__(self, vocabulary, width=64, out=24):
        super().__init__()
        self.visual = Visual(out=out)
        self.transformer = Tower(width, 3)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(77, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, out))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_text(self, tokens):
        mask = torch.full((77, 77), float("-inf")).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding, mask))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


@pytest.fixture(scope="module")
def openai_clip():
    torch.manual_seed(3)
    model = OpenAIClip(vocabulary=len(clip_tokenizer())).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1 and parameter.numel() > 1:
            nn.init.normal_(parameter, std=0.3)  # biases and norms that are nobody's default
    return model


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights}])
def test_computes_the_same(openai_clip, clip_folder, tmp_path, wrap):
    weights = {f"module.{name}": value for name, value in openai_clip.state_dict().items()}
    weights["module.input_resolution"] = torch.tensor(32)
    torch.save(wrap(weights), tmp_path / "clip.pt")
    main([str(tmp_path / "clip.pt"), str(tmp_path / "out"), "--base", str(clip_folder), "--activation", "quick_gelu"])
    model, report = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixels = torch.randn(2, 3, 32, 32)
    tokens = clip_tokenizer()(["a cat", "two dogs run"], padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        images, texts = openai_clip.visual(pixels), openai_clip.encode_text(tokens)
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, images, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.get_text_features(tokens).pooler_output, texts, atol=1e-4, rtol=1e-4)
    assert model.logit_scale.item() == 3.0
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    # LLaVA's transformers 4.37 finds the tower by this prefix.
    assert any(name.startswith("vision_model.") for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_vision_side_alone_takes_the_base_s_text_side(openai_clip, clip_folder, tmp_path):
    complete = convert_names(openai_clip.state_dict())
    vision = {name: value for name, value in openai_clip.state_dict().items() if name.startswith("visual.")}
    torch.save(vision, tmp_path / "vision.pt")
    with pytest.raises(ValueError, match=r"vision_model.embeddings.class_embedding has shape \(128,\)"):
        convert(tmp_path / "vision.pt", tmp_path / "out", str(clip_folder))
    torch.save(openai_clip.state_dict(), tmp_path / "complete.pt")
    convert(tmp_path / "complete.pt", tmp_path / "base", str(clip_folder), "quick_gelu")
    vision["visual.proj"] = vision["visual.proj"] + 1
    torch.save(vision, tmp_path / "vision.pt")
    model = convert(tmp_path / "vision.pt", tmp_path / "out", str(tmp_path / "base")).state_dict()
    torch.testing.assert_close(model["visual_projection.weight"], complete["visual_projection.weight"] + 1)
    torch.testing.assert_close(model["text_projection.weight"], complete["text_projection.weight"])


def below(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    "saved",
    [
        lambda weights: (
            {f"class_model.model.{name}": value for name, value in weights.items()}
            | {"unet.x": weights["logit_scale"]}
        ),
        lambda weights: {f"module.clip.module.{name}": value for name, value in weights.items()},
        lambda weights: {"model": {"state_dict": {f"model.{name}": value for name, value in weights.items()}}},
    ],
    ids=["DIVA, which saves its trainer", "doubled prefixes", "doubled wrappers"],
)
def test_the_clip_is_found_wherever_it_lies(openai_clip, tmp_path, saved):
    weights = openai_clip.state_dict()
    torch.save(saved(weights), tmp_path / "clip.pth")
    read = read_state_dict(tmp_path / "clip.pth")
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize("prefix", ["", "module.", "model.vision."])
def test_un2clip_saves_the_vision_tower_without_its_name(openai_clip, tmp_path, prefix):
    weights = openai_clip.visual.state_dict()
    torch.save(below(prefix, weights), tmp_path / "visual.pt")
    save_file(below(prefix, weights), tmp_path / "visual.safetensors")
    for file in ("visual.pt", "visual.safetensors"):
        read = read_state_dict(tmp_path / file)
        assert read.keys() == {f"visual.{name}" for name in weights}
        assert torch.equal(read["visual.proj"], weights["proj"])


def test_two_clips_in_a_file_are_refused(openai_clip, tmp_path):
    weights = openai_clip.state_dict()
    both = {f"{which}.{name}": value for which in ("student", "teacher") for name, value in weights.items()}
    torch.save(both, tmp_path / "both.pt")
    with pytest.raises(UserError, match=r"found 2 CLIPs, at student\., teacher\."):
        read_state_dict(tmp_path / "both.pt")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_torchscript_archive_is_not_opened_and_the_way_out_works(openai_clip, tmp_path):
    torch.jit.save(
        torch.jit.trace(openai_clip.visual, torch.zeros(1, 3, 32, 32), check_trace=False), tmp_path / "visual.pt"
    )
    with pytest.raises(UserError, match=r"TorchScript archive.*save the weights alone: torch\.save\(torch\.jit\.load"):
        read_state_dict(tmp_path / "visual.pt")
    weights = torch.jit.load(tmp_path / "visual.pt", map_location="cpu").state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    assert torch.equal(read_state_dict(tmp_path / "weights.pt")["visual.proj"], openai_clip.visual.proj)


def test_the_activation_is_the_base_s_where_it_is_not_given(openai_clip, clip_folder, tmp_path):
    torch.save(openai_clip.state_dict(), tmp_path / "clip.pt")
    vision = {name: value for name, value in openai_clip.state_dict().items() if name.startswith("visual.")}
    torch.save(vision, tmp_path / "vision.pt")
    for given in ("gelu", "quick_gelu"):
        convert(tmp_path / "clip.pt", tmp_path / given, str(clip_folder), given)
        for file in ("clip.pt", "vision.pt"):
            config = convert(tmp_path / file, tmp_path / f"{given}-{file}", str(tmp_path / given)).config
            assert (config.vision_config.hidden_act, config.text_config.hidden_act) == (given, given)
    config = convert(tmp_path / "vision.pt", tmp_path / "asked", str(tmp_path / "quick_gelu"), "gelu").config
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == ("gelu", "quick_gelu")


@pytest.mark.parametrize(
    ("vision", "text", "heads"),
    [(1024, 768, (16, 12)), (1280, 1024, (16, 16)), (1664, 1280, (16, 20)), (1792, 1280, (16, 20))],
    ids=["L", "H", "bigG", "e"],
)
def test_each_tower_has_its_own_number_of_heads(vision, text, heads):
    """By open_clip's model configurations."""
    with torch.device("meta"):
        clip = OpenAIClip(49408, width=text, out=text)
        clip.visual = Visual(vision, patch=14, side=16, out=text)
    config = infer_config(clip.state_dict(), "gelu")
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == heads


class Evil:
    """What a pickle may hold: touching the file would create `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_runs_no_code(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"visual.proj": Evil(marker)}))
    with pytest.raises(ValueError, match=r"may hold code"):
        read_state_dict(tmp_path / "evil.pt")
    torch.save({"visual.proj": Evil(marker)}, tmp_path / "evil2.pt")
    with pytest.raises(ValueError, match=r"may hold code"):
        read_state_dict(tmp_path / "evil2.pt")
    assert not marker.exists()


def test_refuses_what_is_no_openai_clip(tmp_path, openai_clip):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match=r"of one CLIP with a vision transformer.*found none"):
        read_state_dict(tmp_path / "resnet.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"not a dictionary of tensors"):
        read_state_dict(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match=r"none.pt"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"1 weights are not of OpenAI's format, such as visual.extra"):
        convert_names({**openai_clip.state_dict(), "visual.extra": torch.zeros(1)})


def test_image_processor_has_openai_s_statistics(openai_clip, clip_folder, tmp_path):
    from dcr_hf.evaluation.embedding.inputs import ImageProcessor

    torch.save(openai_clip.state_dict(), tmp_path / "clip.pt")
    convert(tmp_path / "clip.pt", tmp_path / "out", str(clip_folder), "gelu")
    processor = ImageProcessor("the copy", str(tmp_path / "out"), 32)
    assert processor.processor.image_mean[0] == 0.48145466 != MEAN[0]


def test_a_users_mistake_ends_in_one_line(openai_clip, clip_folder, tmp_path, refusal):
    file, base = tmp_path / "clip.pt", ["--activation", "gelu", "--base", str(clip_folder)]
    torch.save(openai_clip.state_dict(), file)
    assert "is not empty" in refusal(main, [str(file), str(tmp_path), *base])
    assert "is not empty" in refusal(main, [str(file), str(file), *base])
    bare = shutil.copytree(clip_folder, tmp_path / "bare")
    (bare / "tokenizer.json").write_text("{")
    assert "tokenizer: " in refusal(main, [str(file), str(tmp_path / "out"), *base[:-1], str(bare)])
    content = file.read_bytes()
    (tmp_path / "complete.pt").write_bytes(content)
    file.write_bytes(b"")
    assert "is empty: a broken download?" in refusal(main, [str(file), str(tmp_path / "out"), *base])
    assert "cannot say what the file does not hold, its activation" in refusal(
        main, [str(tmp_path / "complete.pt"), str(tmp_path / "out"), *base[2:]]
    )
    missing = refusal(main, [str(tmp_path / "complete.pt"), str(tmp_path / "out"), "--base", "none/here"])
    assert "'none/here' is no folder" in missing
    for broken in (content[:-1000], content[:100], b"junk"):
        file.write_bytes(broken)
        assert "is not a plain state dict" in refusal(main, [str(file), str(tmp_path / "out"), *base])
    assert not (tmp_path / "out").exists()


def test_an_error_of_our_own_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("our own")

    monkeypatch.setattr("dcr_hf.convert.__main__.convert", fail)
    with pytest.raises(ValueError, match="our own"):
        main(["clip.pt", str(tmp_path / "out")])
