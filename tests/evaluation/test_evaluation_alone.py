"""Evaluation stands alone: of this project it imports only encoder.py, the metrics and itself."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_imports():
    files = sorted((ROOT / "dcr_hf" / "evaluation").glob("*.py"))
    assert len(files) > 20
    for path in files:
        ours = {name for name in imported(path) if name.split(".")[0] in ("dcr_hf", "recipes")}
        assert all(
            name.startswith("dcr_hf.evaluation") or name in ("dcr_hf.encoder", "dcr_hf.metrics") for name in ours
        ), (path.name, ours)
