"""Eight simulated devices, quick compilation, strict ranks, and where the real data lies."""

import os
from pathlib import Path

import workflow

os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), workflow.XLA_FLAGS, "--xla_force_host_platform_device_count=8"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real text and GLUE data, or a skip."""
    checkout = Path(__file__).resolve().parent.parent
    path = Path(os.environ.get("JAXPRUNE_DATA", checkout.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set JAXPRUNE_DATA")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> workflow.Tiny:
    """A prepared corpus, a GLUE folder and configs, all tiny."""
    return workflow.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def pretrained(tiny) -> Path:
    """The workdir of a finished pre-training run with hard masks, made by the real command on one device."""
    workdir = tiny.root / "pretrained"
    done = tiny.run("pretrain", tiny.pretrain_yaml(tiny.root / "pretrain.yaml"), "--workdir", workdir)
    assert done.code == 0, done.err
    return workdir
