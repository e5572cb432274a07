"""The house: who may import whom, recipes as leaves, and what the README says about tests."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the data's end to the recipe's: a module imports only from those before it.
ORDER = [
    "losses",
    "encoder",
    "metrics",
    "evaluation",
    "training_options",
    "config",
    "images",
    "readers",
    "skips",
    "sources",
    "data",
    "augment",
    "condition",
    "chunks",
    "planner",
    "fast_path",
    "pipeline",
    "denoiser",
    "objectives",
    "preview",
    "conflict",
    "conflict_report",
    "steplog",
    "checkpoints",
    "interruption",
    "occupied",
    "resumable",
    "trainer",
    "stages",
    "compatibility",
    "export",
    "run",
    "llava",
    "mllm",
    "diagnostics",
    "miniature",
    "ablation",
]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def own_imports(path):
    """'dcr_hf.sources' -> 'sources', for every import of the package in the file."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("dcr_hf.")}


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_those_before_it(module):
    place = ROOT / "dcr_hf" / module
    files = [place.with_suffix(".py")] if not place.is_dir() else sorted(place.rglob("*.py"))
    assert files and all(file.is_file() for file in files)
    allowed = {*ORDER[: ORDER.index(module)], *([module] if place.is_dir() else [])}
    for file in files:
        assert own_imports(file) <= allowed, file


def test_every_module_has_its_place():
    files = {path.stem for path in (ROOT / "dcr_hf").glob("*.py")} - {"__init__"}
    assert {name for name in ORDER if (ROOT / "dcr_hf" / f"{name}.py").is_file()} <= files
    assert len(files) >= 13


def test_the_evaluation_knows_nothing_of_the_miniature():
    files = [path for path in (ROOT / "dcr_hf" / "evaluation").rglob("*") if path.suffix in (".py", ".html")]
    assert len(files) > 20
    for file in files:
        assert not re.search("miniature|scene", file.read_text(), re.IGNORECASE), file


def test_nothing_imports_a_recipe():
    files = [path for folder in ("dcr_hf", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 25
    for file in files:
        assert not [name for name in imports_of(file) if name.split(".")[0] == "recipes"], file
    assert not (ROOT / "recipes" / "__init__.py").exists()


def test_nothing_needs_torchvision_or_trusts_remote_code():
    files = [path for folder in ("dcr_hf", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    for file in files:
        assert not [name for name in imports_of(file) if name.split(".")[0] in ("torchvision", "pickle")], file
        text = file.read_text()
        assert "trust_remote_code" not in text, file
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text)), file


def test_every_test_that_the_readme_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "README.md").read_text())
    assert len(named) >= 12
    for file, function in named:
        assert f"def {function}(" in (ROOT / file).read_text(), (file, function)


def test_every_option_that_the_readme_names_exists():
    from dcr_hf.ablation.cli import _parser as ablate_parser
    from dcr_hf.config import DCRConfig, Recipe
    from dcr_hf.llava.config import LlavaRecipe

    text = (ROOT / "README.md").read_text()
    options = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)", text))
    assert len(options) > 15
    known = {*Recipe.__dataclass_fields__, *DCRConfig.__dataclass_fields__, "config", "config_file", "num_processes"}
    known |= {"checkpoint", "help"}  # of python -m dcr_hf.export, of every command
    known |= {"encoders", "models", "benchmarks", "data_root"}  # of recipes/evaluate.py and evaluate_mllm.py
    known |= {*LlavaRecipe.__dataclass_fields__, "output"}  # of recipes/llava15.py, python -m dcr_hf.llava
    known |= {action.dest for action in ablate_parser()._actions}  # of recipes/ablate.py
    assert options <= known, options - known
