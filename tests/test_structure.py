"""The house: who may import whom, recipes as leaves, and what the README says about tests."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

PACKAGE = ROOT / "dcr_hf"

# The rooms from left to right, each a set of rooms that do not know one another: a room imports from those left of it.
ORDER = [
    {"errors"},
    {"files"},
    {"hub", "config", "plotting", "metrics"},
    {"models"},
    {"denoiser", "data", "evaluation", "export", "convert"},
    {"objectives"},
    {"training"},
    {"cli", "diagnostics"},
    {"run"},
    {"llava", "miniature"},
    {"mllm", "ablation"},
]
# The rooms inside evaluation, in the same way.
EVALUATION = [
    {"readers", "scoring"},
    {"embedding"},
    {"tasks"},
    {"report"},
    {"benchmarks"},
    {"plan", "compare", "arguments"},
    {"run"},
    {"cli"},
]
# What joins the rooms for a reader of the package or of a command line: any may be imported there.
ENTRANCES = {"__init__", "__main__"}


class _WithoutTypes(ast.NodeTransformer):
    def visit_If(self, node):
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def imports_of(path):
    """The names that a file imports when it runs."""
    for node in ast.walk(_WithoutTypes().visit(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_name(path, package):
    """dcr_hf/data/sources.py -> dcr_hf.data.sources"""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(package):
    return {module_name(path, package): path for path in sorted(package.rglob("*.py"))}


def against_the_order(package, order, prefix=""):
    """What is wrong with the rooms of `package`: those that no order names, and imports that do not point left.

    Args:
        order: sets of rooms, from left to right.
        prefix: of the package's own name, where it lies in another.
    """
    level = {room: number for number, rooms in enumerate(order) for room in rooms}
    own = f"{prefix}{package.name}."
    faults = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package).with_suffix("").parts
        if len(inside) == 1 and inside[0] in ENTRANCES:
            continue
        room = inside[0]
        if room not in level:
            faults.append(f"{path.relative_to(package)} is in no order")
            continue
        others = {name.removeprefix(own).split(".")[0] for name in imports_of(path) if name.startswith(own)}
        faults += [
            f"{path.relative_to(package)} imports {other}"
            for other in sorted(others - {room})
            if other in level and level[other] >= level[room]
        ]
    return faults


def cycles(modules):
    """Pairs of modules on a cycle of imports; a package's own names are those of the modules that it re-exports."""
    graph = {
        name: {found for found in imports_of(path) if found in modules} - {name} for name, path in modules.items()
    }
    # What a module imports of its own package's __init__ would be a cycle by itself; what lies above is no edge.
    graph = {name: {found for found in edges if not name.startswith(f"{found}.")} for name, edges in graph.items()}
    reached = {}
    for name in graph:
        seen, waiting = set(), list(graph[name])
        while waiting:
            found = waiting.pop()
            if found not in seen:
                seen.add(found)
                waiting += graph[found]
        reached[name] = seen
    return sorted(name for name in graph if name in reached[name])


def test_every_module_is_in_a_room_and_imports_point_left():
    assert len(list(PACKAGE.rglob("*.py"))) > 100
    assert against_the_order(PACKAGE, ORDER) == []
    assert against_the_order(PACKAGE / "evaluation", EVALUATION, "dcr_hf.") == []


def test_every_room_of_the_order_exists():
    for package, order in ((PACKAGE, ORDER), (PACKAGE / "evaluation", EVALUATION)):
        for room in set().union(*order):
            assert (package / room / "__init__.py").is_file() or (package / f"{room}.py").is_file(), room


def test_no_modules_import_each_other_in_a_circle():
    assert cycles(modules_of(PACKAGE)) == []


def test_a_new_module_in_no_order_and_an_import_against_it_are_seen(tmp_path):
    package = tmp_path / "dcr_hf"
    for room in ("data", "models", "training"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "data" / "stream.py").write_text("from dcr_hf.models import ImageEncoder\n")
    order = [{"models"}, {"data"}, {"training"}]
    assert against_the_order(package, order) == []
    (package / "rogue.py").touch()
    (package / "models" / "encoder.py").write_text("import dcr_hf.data.stream\nfrom dcr_hf import training\n")
    assert against_the_order(package, order) == [
        "models/encoder.py imports data",
        "models/encoder.py imports training",
        "rogue.py is in no order",
    ]
    assert cycles(modules_of(package)) == []
    (package / "data" / "sources.py").write_text("from dcr_hf.data import stream\n")
    (package / "data" / "stream.py").write_text("from dcr_hf.data.sources import find_source\n")
    assert cycles(modules_of(package)) == ["dcr_hf.data.sources", "dcr_hf.data.stream"]


def test_the_root_holds_what_every_room_needs_and_no_more():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == {"__init__", "cli", "run", "plotting"}


def test_every_room_says_what_it_is_for():
    rooms = sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})
    rooms = [room for room in rooms if room.parent.name != "metrics"]  # `evaluate` wants each metric alone
    assert len(rooms) > 18
    for room in rooms:
        tree = ast.parse((room / "__init__.py").read_text())
        assert len((ast.get_docstring(tree) or "").splitlines()) >= 1, room
        names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        assert "__all__" in names, room


def test_no_file_is_longer_than_a_reader_bears():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    assert [f"{path}: {lines}" for path in files if (lines := len(path.read_text().splitlines())) > 250] == []


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


def test_float64_is_of_the_cpu_alone():
    """MPS, the GPU of a Mac, has none."""
    files = list(PACKAGE.rglob("*.py"))
    wide = [(path.name, line) for path in files for line in path.read_text().splitlines() if ".double()" in line]
    assert len(wide) >= 5
    assert [found for found in wide if ".cpu().double()" not in found[1]] == []


def test_every_package_that_is_imported_is_declared_and_pinned():
    """One that comes along with another may be missing, or another, with the next version of that one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runs = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    tests = runs | {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"]["dev"]}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] not in "#-"]
    assert {canonicalize_name(Requirement(line).name) for line in lines} >= tests
    through_others = {"deepspeed", "tensorboard"}
    assert runs - imported("dcr_hf", "recipes") <= {*through_others, "evaluate"}  # is a recipe's name too
    assert imported("dcr_hf", "recipes") <= runs
    assert imported("tests", "benchmarks") <= tests | {"dcr-hf"}


def imported(*folders):
    """The distributions that the files of these folders import, however deep in a function."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    own = {path.stem for path in files} | {path.parent.name for path in files} | {"dcr_hf", *sys.stdlib_module_names}
    names = {name.split(".")[0] for path in files for name in imports_of(path)} - own
    of = packages_distributions()
    assert names <= of.keys(), names - of.keys()
    return {canonicalize_name(of[name][0]) for name in names}


def test_every_test_that_the_readme_and_the_documents_name_exists():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    named = [found for text in texts for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)]
    assert len(named) >= 30
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


def test_every_text_file_has_its_encoding_said():
    """A file that is read on another machine, or under another locale, is the same."""
    silent = []
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")]):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                opens = call.func.attr in ("read_text", "write_text")
                if opens and not any(keyword.arg == "encoding" for keyword in call.keywords):
                    silent.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert silent == []
