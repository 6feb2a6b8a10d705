"""The house: who may import whom. Data flows down; nothing imports upward."""

import ast
import functools
import re
from pathlib import Path

import pytest

import jaxprune

ROOT = Path(jaxprune.__file__).parent
BOTTOM = {"errors", "files", "progress"}
TABLE = {
    "errors": set(),
    "files": set(),
    "progress": set(),
    "config": BOTTOM,
    "pruning": {"errors"},
    "optax": {"pruning", "errors"},
    "data": BOTTOM | {"config"},
    "models": BOTTOM | {"config", "pruning"},
    "training": BOTTOM | {"config", "pruning", "optax"},
    "analysis": BOTTOM,
    "plan": {"config", "training", "errors"},
    "reports": BOTTOM | {"analysis"},
    "export": BOTTOM | {"config", "pruning", "models"},
    "experiments": BOTTOM
    | {"config", "pruning", "data", "models", "training", "analysis", "plan", "reports", "export"},
    "exit_code": {"errors", "experiments"},
    "usage": set(),
    "cli": {"config", "experiments", "errors", "exit_code", "usage"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""Part -> parts of jaxprune it may import besides itself."""
DEPTH = 11
"""Modules in the longest chain of imports at the top of files, its first counted in. The aim is 8; for that three
towers under `experiments.walk` would have to be lower at once: loop, steps, optax, masks; pruner, thresholds, tallies;
folder, registry, architecture, layers, paths. The first edition had 14."""
BANNED = {
    "errors": {"jax", "numpy"},
    "files": {"jax", "numpy"},
    "progress": {"jax", "numpy"},
    "config": {"jax", "flax", "optax", "numpy"},
    "data": {"jax", "flax", "optax", "torch"},
    "pruning": {"flax", "optax", "numpy", "transformers"},
    "training": {"flax", "transformers", "datasets"},
    "analysis": {"jax", "flax", "torch", "matplotlib", "jinja2"},
    "reports": {"jax", "flax", "torch"},
    "plan": {"flax", "optax"},
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
    allowed |= {"itertools", "dataclasses", "decimal", "fractions", "signal", "threading", "contextlib"}
    for path in (ROOT / "pruning").glob("*.py"):
        assert {name.split(".")[0] for name in _imports(path)} <= allowed, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def _module(path: Path) -> str:
    parts = ["jaxprune", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _bound(path: Path) -> set[str]:
    """The names that a file gives to functions, classes, values and what it imports, at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return names


def _imported_at_the_top(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of jaxprune that a file imports outside of functions; `from package import name` is one of the
    package's modules unless the package itself gives that name to something else."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            given = _bound(modules[node.module])
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                names.add(module if module in modules and alias.name not in given else node.module)
    return names & modules.keys()


def test_a_name_that_a_package_gives_is_no_module(tmp_path):
    """`pruner` is a function of `jaxprune.pruning` as well as a file there; `masks` is a file alone."""
    modules = {_module(path): path for path in FILES}
    lines = ["import jaxprune.cli", "from jaxprune.pruning import cubic, masks, pruner", "from jaxprune import errors"]
    (tmp_path / "user.py").write_text("\n".join(lines))
    wanted = {"jaxprune.cli", "jaxprune.pruning", "jaxprune.pruning.masks", "jaxprune.errors"}
    assert _imported_at_the_top(tmp_path / "user.py", modules) == wanted


def test_the_longest_chain_of_imports():
    modules = {_module(path): path for path in FILES}
    uses = {name: _imported_at_the_top(path, modules) - {name} for name, path in modules.items()}

    @functools.cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max((chain(used) for used in uses[name]), key=len, default=()))

    longest = max(map(chain, modules), key=len)
    assert len(longest) <= DEPTH, " -> ".join(longest)


WORDS_OF_AN_ARCHITECTURE = re.compile(
    r"\[(CLS|SEP|PAD|UNK|MASK)\]|encoder/layer_|attention/(query|key|value|output)|word_embeddings/|bert\.encoder"
    r"|cls\.predictions|LayerNorm\."
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_models_spells_paths_tokens_and_tensors(path):
    """Code, not prose: strings that are docstrings or comments may explain."""
    if path.relative_to(ROOT).parts[0] == "models":
        return
    tree = ast.parse(path.read_text())
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    spelled = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
        if WORDS_OF_AN_ARCHITECTURE.search(node.value)
    ]
    assert not spelled
