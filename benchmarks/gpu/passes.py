"""What each pass on a GPU machine runs: steps with a limit of seconds each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GPU = Path(__file__).parent
ROOT = GPU.parents[1]
TINY = ["--sd", "tiny", "--encoder", "tiny", "--image_size", "64", "--batch", "2", "--steps", "1"]


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        limit: seconds, on a GPU.
        command: what follows `python`.
        folder: where it runs; ROOT if None.
        brings: files that are copied to the results afterwards.
    """

    name: str
    limit: int
    command: list[str]
    folder: Path | None = None
    brings: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Where:
    """Folders of a pass.

    Attributes:
        output: results, which travel back.
        work: models and checkpoints, which stay.
        tiny: a rehearsal on a CPU.
    """

    output: Path
    work: Path
    tiny: bool

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    @property
    def launch(self) -> list[str]:
        """Through accelerate, as a user does; --quiet, so that the exit code is the program's own."""
        if self.tiny:
            return []
        config = ROOT / "accelerate_configs" / "single_gpu.yaml"
        return ["-m", "accelerate.commands.launch", "--quiet", "--config_file", str(config)]


def contact(where: Where) -> Iterator[Step]:
    """What is there, are the numbers right, does a real run survive being killed."""
    tiny, models = ["--tiny"] * where.tiny, where.work / "models"
    out = ["--output_dir", str(where.output)]
    yield Step("environment", 60, [f"{GPU}/environment.py", *out, *tiny])
    yield Step("attention", 60, [f"{GPU}/attention.py", *out, *tiny])
    yield Step("parity", 150, [f"{GPU}/parity.py", *out, *tiny])
    yield Step("models", 120, [f"{GPU}/make_models.py", str(models), *tiny])
    if not where.tiny:
        steps = ["--stage1_max_steps", "20", "--stage2_max_steps", "20", "--save_steps", "20", "--report_to", "none"]
        recipe = [str(ROOT / "recipes" / "miniature.py"), "--output_dir", str(where.work / "miniature")]
        yield Step("miniature", 150, [*where.launch, *recipe, *steps], where.work)
    yield Step("interrupted", 420, [f"{GPU}/interrupted.py", *out, "--work", str(where.work), *tiny])


def steps(where: Where) -> Iterator[Step]:
    """A step at 224 px: against the released manner, not compiled and compiled, and where its time goes."""
    ways = ["released", "all+profile", "auto", "32", "all+flash", "all+contiguous"]
    yield _measure(where, "step_eager", 260, ways if not where.tiny else ["released", "all+profile"])
    compiled = ["--torch_compile", *(["--compile_backend", "aot_eager"] if where.tiny else [])]
    ways = ["all+profile", "all+contiguous"] if not where.tiny else ["all"]
    yield _measure(where, "step_compiled", 300, ways, *compiled)


def sizes(where: Where) -> Iterator[Step]:
    """Other chunks, stage 1, larger images, larger encoders, checkpointing."""
    both = ["auto", "auto+checkpointing"]
    chunks = ["8", "16", "64", "136", "all+checkpointing", "auto+loader"]
    yield _measure(where, "chunks", 130, chunks if not where.tiny else ["2"])
    yield _measure(where, "stage1", 60, ["released", "all"] if not where.tiny else ["all"], "--stage", "1")
    if where.tiny:
        return
    yield _measure(where, "vitl_336", 130, ["released", *both, "68+checkpointing"], "--image_size", "336")
    yield _measure(where, "siglip_384", 140, both, "--encoder", "siglip", "--image_size", "384")
    yield _measure(where, "vith_224", 60, both, "--encoder", "vith")


def miniature(where: Where) -> Iterator[Step]:
    """The miniature one size up: pretraining, and DCR on it. What is finished is not made again."""
    models, pretrained = where.work / "pretrained", ["--encoder", "clip-miniature", "--denoiser", "sd-miniature"]
    folders = [word if word.startswith("--") else str(models / word) for word in pretrained]
    if where.tiny:
        yield Step("pretrain", 480, [f"{GPU}/pretrain_tiny.py", str(models)])
        return
    recipe = [str(ROOT / "recipes" / "pretrain_miniature.py"), "--size", "small", "--output_dir", str(models)]
    brings = models / "measured.json", models / "sd-miniature.png"
    yield Step("pretrain", 480, [*recipe, "--prediction_type", "epsilon"], brings=brings)
    budget = ["--stage1_max_steps", "200", "--stage2_max_steps", "200", "--report_to", "none"]
    own = where.work / "dcr"  # the recipe draws its scenes below the folder where it runs, in the encoder's size
    recipe = [str(ROOT / "recipes" / "miniature.py"), *folders, "--output_dir", str(own / "run")]
    yield Step("dcr", 200, [*where.launch, *recipe, *budget], own, brings=(own / "run" / "report" / "report.html",))


def search(where: Where) -> Iterator[Step]:
    """If time is left: a resume to the last bit, the compiler's longest search, chunk sizes and batch sizes."""
    if not (where.work / "models").is_dir():
        yield Step("models", 120, [f"{GPU}/make_models.py", str(where.work / "models"), *["--tiny"] * where.tiny])
    words = ["--output_dir", str(where.output), "--work", str(where.work), "--exact", *["--tiny"] * where.tiny]
    yield Step("interrupted_exact", 300, [f"{GPU}/interrupted.py", *words])
    backend = ["--compile_backend", "aot_eager"] if where.tiny else ["--compile_mode", "max-autotune-no-cudagraphs"]
    yield _measure(where, "step_autotune", 200, ["all"], "--torch_compile", *backend)
    if not where.tiny:
        yield _measure(where, "sweep", 300, ["released"], "--sweep")


PASSES = {1: contact, 2: steps, 3: sizes, 4: miniature, 5: search}


def _measure(where: Where, name: str, limit: int, ways: list[str], *more: str) -> Step:
    """benchmarks/step.py, with its table in a folder `name`."""
    folder = ["--output_dir", str(where.output / name), "--ways", *ways]
    return Step(name, limit, [f"{GPU.parent}/step.py", *folder, *(TINY if where.tiny else []), *more])
