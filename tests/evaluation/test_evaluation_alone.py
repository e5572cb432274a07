"""Evaluation stands alone: of this project it imports only what lies left of it and itself."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALONE = ("dcr_hf.errors", "dcr_hf.files", "dcr_hf.hub", "dcr_hf.plotting")


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_imports():
    files = sorted((ROOT / "dcr_hf" / "evaluation").rglob("*.py"))
    assert len(files) > 20
    for path in files:
        ours = {name for name in imported(path) if name.split(".")[0] in ("dcr_hf", "recipes")}
        assert all(
            name.startswith(("dcr_hf.evaluation", "dcr_hf.models", "dcr_hf.metrics")) or name in ALONE for name in ours
        ), (path.name, ours)
