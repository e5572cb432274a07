"""Diagnostics of a trained encoder.

python -m dcr_hf.diagnostics scatter --encoder ENCODER --projector OUT/stage1 --denoiser DENOISER --data LABELLED
python -m dcr_hf.diagnostics control --run OUT
python -m dcr_hf.diagnostics curve --run OUT --benchmarks mmvp_vlm clustering:cifar10
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from dcr_hf.denoiser import FrozenDenoiser, check_denoiser
from dcr_hf.diagnostics.control import write_controls
from dcr_hf.diagnostics.curve import markdown as markdown_of_curve
from dcr_hf.diagnostics.curve import measure_curve, write_curve
from dcr_hf.diagnostics.predictions import choose_images, conditions_of, embed, embedding_gram, prediction_gram
from dcr_hf.diagnostics.report import draw, markdown
from dcr_hf.diagnostics.scatter import compare, over_seeds
from dcr_hf.errors import NotFoundError, OneLineParser, UserError, exit_on_user_error
from dcr_hf.evaluation.embedding.encoders import PretrainedEncoder
from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.readers.shards import read_labeled
from dcr_hf.evaluation.scoring.results import writes_to
from dcr_hf.files import check_writable, user_path
from dcr_hf.models.families import check_encoder
from dcr_hf.models.float32 import full_float32
from dcr_hf.models.projector import Projector, check_projector


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m dcr_hf.diagnostics", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_scatter(commands)
    _add_control(commands)
    _add_curve(commands)
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        print({"scatter": run_scatter, "control": run_control, "curve": run_curve}[options.command](options))


def _add_control(commands) -> None:
    control = commands.add_parser(
        "control",
        help="encoders moved as far as a run's, in random directions",
    )
    control.add_argument("--run", type=user_path, required=True, help="the run's --output_dir")
    control.add_argument("--checkpoint", type=user_path, help="one of the run's, such as RUN/stage2/checkpoint-200")
    control.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a random encoder each")
    control.add_argument("--output_dir", type=user_path, help="for a folder each; by default RUN/control")


def run_control(options: argparse.Namespace) -> str:
    """Check, write the encoders, and say how to measure them."""
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: give each once, 0 or more.")
    output_dir = options.output_dir or options.run / "control"
    check_writable("--output_dir", output_dir)
    wanted, controls = write_controls(options.run, options.seeds, output_dir, options.checkpoint)
    lines = [f"the run moved its embeddings by {wanted:.5f} (mean cosine distance); in random directions:"]
    lines += [
        f"  {each.folder}  by {each.distance:.5f}, {each.factor:.2f} times as large a change" for each in controls
    ]
    named = " ".join(f"random{each.seed}={each.folder}" for each in controls)
    return "\n".join([*lines, f"To measure them beside the run: recipes/evaluate.py --encoders BASE DCR {named} ..."])


def _add_curve(commands) -> None:
    curve = commands.add_parser(
        "curve",
        help="abilities of a run's checkpoints against the distance that each has moved",
    )
    curve.add_argument("--run", type=user_path, required=True, help="the run's --output_dir")
    curve.add_argument("--benchmarks", nargs="+", required=True, help="as in recipes/evaluate.py")
    curve.add_argument("--data_root", type=user_path, help="folder of local copies; default: from the hub")
    curve.add_argument("--output_dir", type=user_path, help="for curve.json, .md, .png and results.json; default: "
                       "RUN/curve")  # fmt: skip
    curve.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of k-means")
    curve.add_argument("--batch_size", type=_at_least(1), default=64, help="images that the encoder sees at once")


def run_curve(options: argparse.Namespace) -> str:
    """Measure and write; return the table."""
    output_dir = options.output_dir or options.run / "curve"
    check_writable("--output_dir", output_dir)
    points = measure_curve(
        options.run, options.benchmarks, options.data_root, output_dir, None, tuple(options.seeds), options.batch_size
    )
    assert points is not None  # one process
    write_curve(points, output_dir)
    return f"{markdown_of_curve(points)}\nWritten: {output_dir}/curve.json, curve.md, curve.png, results.json"


def _add_scatter(commands) -> None:
    scatter = commands.add_parser(
        "scatter",
        help="theorem 1: scatter of embeddings and of predictions, within and between classes",
    )
    scatter.add_argument("--encoder", required=True, help="CLIP or SigLIP folder or hub id, or a result of stage 2")
    scatter.add_argument("--projector", required=True, help="projector folder, such as OUT/stage1")
    scatter.add_argument("--denoiser", required=True, help="Stable Diffusion folder or hub id")
    scatter.add_argument(
        "--data",
        required=True,
        help="labelled images: shards in CLIP_benchmark's layout, class folders, or a hub id",
    )
    scatter.add_argument("--output_dir", type=user_path, default=Path("scatter"), help="for scatter.json, .md, .png")
    scatter.add_argument("--classes", type=_at_least(2), default=10, help="largest number of classes")
    scatter.add_argument(
        "--images_per_class", type=_at_least(2), default=20, help="largest number of images per class"
    )
    scatter.add_argument(
        "--probes", type=_at_least(1), default=4, help="number of noisy latents, shared by all conditions"
    )
    scatter.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the probes")
    scatter.add_argument("--batch_size", type=_at_least(1), default=32, help="batch size of encoder and UNet")
    scatter.add_argument("--workers", type=int, default=2, help="decoding processes")


@full_float32()  # predictions of one latent differ by about the rounding error of bfloat16 and TF32
def run_scatter(options: argparse.Namespace) -> str:
    """Check, measure and write; return the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: give each once.")
    encoder = PretrainedEncoder("encoder", options.encoder, device=device)
    projector_folder = check_projector(
        options.projector, check_encoder(encoder.base), check_denoiser(options.denoiser)
    )
    data = _read(options.data)
    rows = choose_images(data.labels, options.classes, options.images_per_class)
    embeddings, pixels = embed(encoder, data, rows, options.batch_size, options.workers)
    conditions = conditions_of(Projector.from_pretrained(projector_folder).to(device), embeddings)
    denoiser = FrozenDenoiser.from_pretrained(options.denoiser, dtype=torch.float32).to(device)
    embedded, labels = embedding_gram(embeddings), data.labels[rows]
    prediction_grams = {
        seed: prediction_gram(denoiser, conditions, pixels, options.probes, seed, options.batch_size)
        for seed in options.seeds
    }
    by_seed = {seed: compare(embedded, gram, labels) for seed, gram in prediction_grams.items()}
    used_options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    classes = len(set(labels.tolist()))
    measured = {"images": len(rows), "classes": classes, "encoder": encoder.identity}
    seed, shown = next(iter(prediction_grams.items()))
    title = f"{data.name}: {len(rows)} images of {classes} classes, seed {seed}"
    figure = draw(embedded, shown, labels, by_seed[seed]["within"]["m"], title)
    summary = over_seeds(list(by_seed.values()))
    _write(
        options.output_dir,
        {"options": used_options, "measured": measured, "summary": summary, "seeds": by_seed},
        figure,
    )
    return f"{markdown(summary)}\n\nWritten: {options.output_dir}/scatter.json, scatter.md, scatter.png"


def _write(folder: Path, result: dict[str, Any], figure: Figure) -> None:
    with writes_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scatter.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (folder / "scatter.md").write_text(markdown(result["summary"]) + "\n", encoding="utf-8")
        figure.savefig(folder / "scatter.png", dpi=150, bbox_inches="tight")


def _read(name: str) -> LabeledImages:
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return read_labeled(folder.name, None, folder.parent)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise NotFoundError(
            f"--data {name!r} is neither a folder here nor a hub id such as clip-benchmark/wds_vtab-cifar10."
        )
    return read_labeled(name.split("/")[-1], name, None)


def _at_least(least: int):
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return number


if __name__ == "__main__":
    main()
