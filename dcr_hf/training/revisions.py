"""What the models and the data of a run are exactly: the hub's commits, fingerprints of folders; at every start the
same."""

import json
from dataclasses import dataclass
from pathlib import Path

from dcr_hf.config import Recipe
from dcr_hf.data.dealing import Source
from dcr_hf.data.sources import find_source
from dcr_hf.hub import adopt, fingerprint_of_model, from_one_process, hub_id, pin

_MODELS = ("encoder", "denoiser")


@dataclass(frozen=True)
class Inputs:
    """The data to train on, and what everything that goes into a run is.

    Attributes:
        revisions: {"encoder": commit or fingerprint, "denoiser": ..., "train_data": ..., "projector": where given}.
    """

    source: Source
    revisions: dict[str, str]

    @property
    def facts(self) -> dict[str, str]:
        """What a resume compares."""
        return revision_facts(self.revisions)


def revision_facts(revisions: dict[str, str]) -> dict[str, str]:
    """Commits and fingerprints under the names that a checkpoint's facts have for them."""
    return {f"{name}_revision": revision for name, revision in revisions.items()}


def resolve_inputs(recipe: Recipe, folder: Path) -> Inputs:
    """Resolve ids to commits and folders to fingerprints. One process of the run asks the hub. To be called by all.

    A run that resumes in `folder` continues with the commits that it recorded there.

    Raises:
        NotFoundError, UserError: a missing model or data set; a recorded commit that the hub no longer has.
        UnavailableError: the hub does not answer.
    """
    asked = {name: getattr(recipe, name) for name in (*_MODELS, "train_data")}
    before = {} if recipe.overwrite_output_dir else recorded_revisions(asked, folder)
    revisions = resolve_models({name: asked[name] for name in _MODELS}, before)
    if hub_id(recipe.train_data):
        source = from_one_process(lambda: find_source(recipe.train_data, before.get("train_data")))
    else:
        source = find_source(recipe.train_data)
    revisions["train_data"] = source.revision
    if recipe.projector and Path(recipe.projector).expanduser().is_dir():
        revisions["projector"] = fingerprint_of_model(Path(recipe.projector).expanduser())
    return Inputs(source, revisions)


def resolve_models(asked: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    """The commit or fingerprint of each model. To be called by all processes. Raises as `resolve_inputs`.

    Args:
        asked: folders and ids by the name of their option.
        before: commits of an earlier start of the same run, by the same names.
    """
    on_hub = {name: given for name, given in asked.items() if hub_id(given)}
    pins = from_one_process(
        lambda: [(given, pin(f"--{name}", given, commit=before.get(name))) for name, given in on_hub.items()]
    )
    adopt(pins)
    commits = {given: found.commit for given, found in pins}
    return {
        name: commits[given] if name in on_hub else fingerprint_of_model(Path(given).expanduser())
        for name, given in asked.items()
    }


def recorded_revisions(asked: dict[str, str], folder: Path) -> dict[str, str]:
    """Commits of those ids that an earlier start in `folder` had under the same names."""
    file = folder / "run.json"
    if not file.is_file():
        return {}
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        options, revisions = run["options"], run["revisions"]
        names = [name for name, given in asked.items() if options[name] == given and name in revisions]
        return {name: revisions[name] for name in names if hub_id(options[name])}
    except (ValueError, LookupError, TypeError):  # written by an older version, or by hand
        return {}
