"""A variant with a seed, trained by a recipe's command line."""

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from dcr_hf.ablation.variants import COMMON, ORIGINAL, VARIANTS
from dcr_hf.cli import parse
from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.errors import UserError, as_user_error
from dcr_hf.evaluation.scoring.results import writes_to
from dcr_hf.export import export_folders
from dcr_hf.run import check
from dcr_hf.training.plan import STAGE1, plan_stages


@dataclasses.dataclass(frozen=True)
class Trial:
    """One variant with one seed.

    Attributes:
        words: the full command line of its run.
        folder: the run's output folder.
        encoder: the encoder that it starts from.
    """

    variant: str
    seed: int
    words: tuple[str, ...]
    folder: Path
    encoder: str

    @classmethod
    def of(
        cls,
        variant: str,
        seed: int,
        common: dict[str, object],
        extra: Sequence[str],
        output: Path,
        num_negatives: int | None = None,
    ) -> "Trial":
        """Make a trial; `{seed}` in a path or id stands for the seed. `extra`, command-line words, take precedence.

        Raises:
            UserError: an unknown option, or one that the variant itself changes.
        """
        own = VARIANTS[variant].options
        if num_negatives is not None and own.get("objective", "dcr") == "dcr" and variant != ORIGINAL:
            own = {"num_negatives": num_negatives, **own}
        options = COMMON | common | own | {"seed": seed, "output_dir": output / f"seed{seed}" / variant}
        words = [
            word.replace("{seed}", str(seed))
            for word in (*(str(part) for name, value in options.items() for part in (f"--{name}", value)), *extra)
        ]
        given = {word.removeprefix("--").split("=")[0] for word in extra if word.startswith("--")}
        if taken := given & {*own, "output_dir", "seed", "stage"}:
            raise UserError(f"--{min(taken)} is what the ablation varies ({variant}); leave it out.")
        recipe, args = parse(Recipe(encoder=""), {}, words)
        trains_both = any(plan.trains_projector and plan.trains_encoder for plan in plan_stages(recipe, args))
        if trains_both:  # as many steps as both stages of the others
            words += ["--stage2_max_steps", str(recipe.stage1_max_steps + recipe.stage2_max_steps)]
        return cls(variant, seed, tuple(words), Path(args.output_dir), recipe.encoder)

    @property
    def stage1(self) -> tuple[int, str] | None:
        """What trials share whose stage 1 is the same; None for one of its own."""
        name = VARIANTS[self.variant].stage1
        return None if name is None else (self.seed, name)

    @property
    def enhanced(self) -> Path | None:
        """The folder of the enhanced encoder; None for the original."""
        return None if self.variant == ORIGINAL else export_folders(self.encoder, self.folder)[0]

    @property
    def is_finished(self) -> bool:
        return self.enhanced is None or self.enhanced.is_dir()

    def parsed(self) -> tuple[Recipe, DCRConfig]:
        return parse(Recipe(encoder=""), {}, list(self.words))

    def check(self) -> None:
        """Check the run's options and inputs before any run is started."""
        if not self.is_finished:
            recipe, args = self.parsed()
            check(recipe, args, plan_stages(recipe, args))

    def train(self, launcher: Sequence[str], leader: "Trial | None" = None) -> None:
        """Train in a separate process. A finished run is not repeated; an interrupted one resumes.

        Args:
            leader: a finished trial whose stage 1 is the same; it is copied.
        """
        if self.is_finished:
            return
        with writes_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if leader is not None and not (self.folder / STAGE1).exists():
                copied = self.folder / f".{STAGE1}"
                shutil.rmtree(copied, ignore_errors=True)
                shutil.copytree(leader.folder / STAGE1, copied, ignore=shutil.ignore_patterns("checkpoint-*"))
                copied.rename(self.folder / STAGE1)
            log = (self.folder / "log.txt").open("a", encoding="utf-8")
        command = [*launcher, "-m", "dcr_hf.ablation.one", *self.words, "--disable_tqdm", "True"]
        with log, as_user_error(f"--launcher {' '.join(launcher)}", FileNotFoundError, PermissionError):
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{self.variant} with seed {self.seed} ended with {done.returncode}: see {self.folder}/log.txt. Run "
                "the same command again to resume."
            )


def train_all(trials: Sequence[Trial], launcher: Sequence[str], jobs: int) -> None:
    """Train what is missing, `jobs` at a time. When one fails, running ones are finished, no other is started, and its
    error is raised.

    Of the trials whose stage 1 is the same, the first trains it, and the others begin when that one has ended.
    """
    leaders: dict[tuple[int, str], Trial] = {}
    for trial in sorted(trials, key=lambda each: not each.is_finished):
        if trial.stage1 is not None:
            leaders.setdefault(trial.stage1, trial)
    alone = [trial for trial in trials if trial.stage1 is None or leaders[trial.stage1] is trial]
    following = [(trial, leaders[trial.stage1]) for trial in trials if trial.stage1 and trial not in alone]
    runs: dict[Trial, Future] = {}

    def follow(trial: Trial, leader: Trial) -> None:
        runs[leader].result()  # was submitted earlier, so it runs or has ended
        trial.train(launcher, leader)

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(trials), desc="training", unit=" runs") as bar:
        runs |= {trial: pool.submit(trial.train, launcher) for trial in alone}
        runs |= {trial: pool.submit(follow, trial, leader) for trial, leader in following}
        try:
            for run in as_completed(runs.values()):
                run.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
