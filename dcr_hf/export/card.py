"""The model card of an exported folder."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig

from dcr_hf.export.run_facts import RunFacts
from dcr_hf.hub import hub_id, local_folder
from dcr_hf.models.families import FAMILIES

ARXIV = "2603.04803"
_TITLES = {"stage1": "stage 1", "stage2": "stage 2", "end_to_end": "end to end"}


def write_card(folder: Path, name: str, encoder: str, config: PreTrainedConfig, facts: RunFacts | None) -> None:
    """Write README.md with metadata into an exported folder; `name` is what the folder will be called."""
    is_tower = name.endswith("-vision")
    base = _shown(encoder)
    data_id = None if facts is None or not hub_id(facts.train_data) else facts.train_data.partition("@")[0]
    data = ModelCardData(
        base_model=base.partition("@")[0],
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if is_tower else "zero-shot-image-classification",
        license=_license(encoder),
        datasets=[data_id] if data_id else None,
        tags=["dcr", config.model_type, "vision", f"arxiv:{ARXIV}"],
    )
    objective = "dcr" if facts is None else facts.options["objective"]
    body = [_introduction(name, base, is_tower, objective), _usage(name, config, is_tower), _limits(config)]
    if facts is not None:
        body.insert(2, _training(facts))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n").save(folder / "README.md")


def _license(encoder: str) -> str | None:
    """The license that the base's own model card names, if it has a card that names one."""
    card = local_folder(encoder) / "README.md"
    return ModelCard.load(card).data.license if card.is_file() else None


def _introduction(name: str, encoder: str, is_tower: bool, objective: str) -> str:
    what = "The vision tower" if is_tower else "The dual encoder"
    dcr = f"Diffusion Contrastive Reconstruction ([DCR](https://arxiv.org/abs/{ARXIV}))"
    if objective != "dcr":
        return (
            f"# {name}\n\n{what} of `{encoder}`, its vision side fine-tuned with the objective `{objective}`: a "
            f"baseline that {dcr} is compared with, and not DCR itself."
        )
    return (
        f"# {name}\n\n{what} of `{encoder}`, its vision side fine-tuned by {dcr}: images are encoded and projected to "
        "a condition, a frozen Stable Diffusion predicts the noise of every image under the condition of every other, "
        "and one contrastive loss over those predictions trains the encoder. The aim is to see details without "
        "forgetting categories."
    )


def _usage(name: str, config: PreTrainedConfig, is_tower: bool) -> str:
    family = FAMILIES[config.model_type]
    model_class = (family.vision_class if is_tower else family.dual_class).__name__
    lines = [
        "from PIL import Image",
        f"from transformers import AutoImageProcessor, {model_class}",
        "",
        f'model = {model_class}.from_pretrained("{name}")',
        f'processor = AutoImageProcessor.from_pretrained("{name}")',
        'inputs = processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")',
        "tokens = model(**inputs).last_hidden_state"
        if is_tower
        else "embedding = model.get_image_features(**inputs).pooler_output",
    ]
    snippet = "\n".join(lines)
    llava = (
        "In LLaVA-1.5, give the absolute path of the `-vision` folder as `--vision_tower` and run both of LLaVA's "
        "training stages again with their settings unchanged."
        if config.model_type == "clip"
        else "In LLaVA-NeXT, SigLIP towers are a class of their own, for 384 pixels only, and a *local* SigLIP path "
        "is taken for a CLIP: name it by a hub id with `siglip` in it. Transformers' LLaVA takes any SigLIP."
    )
    return f"## Use\n\n```python\n{snippet}\n```\n\n{llava}"


def _stages(facts: RunFacts) -> dict[str, str]:
    """What the run's own stages did; another run may have trained the projector before."""
    rows = {}
    for stage in facts.stages:
        text = f"{stage['steps']} steps at {stage['learning_rate']:g}, objective {stage['objective']}"
        if stage["projector_learning_rate"]:
            text += f", the projector at {stage['projector_learning_rate']:g}"
        rows[_TITLES[stage["name"]]] = text
    return rows


def _training(facts: RunFacts) -> str:
    options = facts.options
    rows = {
        "encoder": _at(_shown(facts.encoder), facts.revisions.get("encoder")),
        "denoiser": _at(_shown(facts.denoiser), facts.revisions.get("denoiser")),
        "data": _at(facts.train_data, facts.revisions.get("train_data")),
        **_stages(facts),
        "batch": f"{options['per_device_train_batch_size']} a device x {options['gradient_accumulation_steps']} "
        f"accumulated x {facts.world_size} devices",
        "seed": options["seed"],
        "code": facts.commit or "installed package",
        "versions": ", ".join(f"{package} {version}" for package, version in facts.versions.items()),
    }
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())])
    log = "\n".join(f"| {key} | {value:.6g} |" for key, value in facts.log.items())
    return (
        f"## Training\n\n```\n{facts.command}\n```\n\n{table}\n\n"
        f"The last logged step, averaged over its logging window:\n\n| | |\n| --- | --- |\n{log}"
    )


def _shown(given: str) -> str:
    """An id, or the name of a folder: its path says nothing elsewhere."""
    return given if hub_id(given) else Path(given).name


def _at(name: str, revision: str | None) -> str:
    return f"{name} ({revision})" if revision else name


def _limits(config: PreTrainedConfig) -> str:
    projection = " and the visual projection" if config.model_type == "clip" else ""
    return (
        f"## Limits\n\nOnly the vision tower{projection} changed. The text side is that of the base, bit by bit, and "
        "was not trained to follow: measure zero-shot classification and retrieval before you rely on them. "
        "The training images' biases, and those of the denoiser, may have left their mark."
    )
