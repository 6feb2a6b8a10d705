"""The house: who may import whom. Data flows down; nothing imports upward."""

import ast
from pathlib import Path

import pytest

import jaxprune

ROOT = Path(jaxprune.__file__).parent
TABLE = {
    "config": set(),
    "pruning": set(),
    "data": {"config"},
    "models": {"config"},
    "training": {"config", "pruning"},
    "analysis": set(),
    "experiments": {"config", "pruning", "data", "models", "training", "analysis"},
    "plan": {"config", "pruning", "models", "training", "data"},
    "cli": {"config", "experiments", "plan"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""Part -> parts of jaxprune it may import besides itself."""
BANNED = {
    "config": {"jax", "flax", "optax", "numpy"},
    "data": {"jax", "flax", "optax", "torch"},
    "pruning": {"flax", "optax", "numpy", "transformers"},
    "training": {"flax", "transformers", "datasets"},
    "analysis": {"jax", "flax", "torch"},
}
FILES = sorted(ROOT.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "jaxprune":
                names |= {f"jaxprune.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    inside = {name.split(".")[1] for name in _imports(path) if name.startswith("jaxprune.")}
    assert inside - {part} <= TABLE[part], f"{part} may import {TABLE[part]} only"
    outside = {name.split(".")[0] for name in _imports(path)}
    assert not outside & BANNED.get(part, set())


def test_pruning_needs_jax_alone():
    allowed = {"jax", "jaxprune", "collections", "typing", "functools", "math", "re", "difflib", "operator", "zlib"}
    allowed |= {"itertools", "dataclasses", "decimal", "fractions"}
    for path in (ROOT / "pruning").glob("*.py"):
        assert {name.split(".")[0] for name in _imports(path)} <= allowed, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
