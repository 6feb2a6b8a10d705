"""Programs that outlive a command: where they lie, who decides, what a killed process leaves, the same bits."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import filelock
import pytest

from jaxprune.experiments.compilation_cache import keep_programs, user_cache

RUN = """
import os, sys
from jaxprune.experiments.compilation_cache import keep_programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
keep_programs()
import jax, jax.numpy as jnp, numpy as np
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
if len(sys.argv) > 1:  # the user makes room
    import shutil
    jnp.ones(3).block_until_ready()
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"])
y = jax.jit(lambda x: jnp.tanh(x @ x) / jnp.sum(jnp.exp(x), 0))(x)
print(events.count("/jax/compilation_cache/cache_hits") > 0, np.asarray(y).tobytes().hex())
"""


def run(home: Path, *words: str) -> tuple[str, str, str]:
    """(whether programs were read, the bits of what they gave, what went wrong) of a process with this home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, env=environment, check=True
    )
    hit, bits = done.stdout.split()
    return hit, bits, done.stderr


@pytest.fixture(autouse=True)
def own_filters():
    """`keep_programs` silences warnings of JAX's for the rest of a process."""
    with warnings.catch_warnings():
        yield


def test_programs_are_read_back_with_the_same_bits_and_without_a_word(tmp_path):
    first, again = run(tmp_path), run(tmp_path)
    assert (first[0], again[0]) == ("False", "True")
    assert first[1] == again[1] and first[2] == again[2] == ""
    cache = tmp_path / ".cache" / "jaxprune" / "xla"
    assert [*cache.glob("*-cache")] and cache.stat().st_mode & 0o777 == 0o700
    for path in cache.glob("*-cache"):  # a disk that failed
        path.write_bytes(path.read_bytes()[:100])
    broken = run(tmp_path)
    assert broken[1:] == first[1:] and broken[0] == "False"
    assert run(tmp_path, "remove it")[1:] == first[1:]


def test_a_user_who_decides_is_left_alone(tmp_path):
    for name, value in (("JAX_COMPILATION_CACHE_DIR", "x"), ("JAX_ENABLE_COMPILATION_CACHE", "false")):
        environment = {"XDG_CACHE_HOME": str(tmp_path), name: value}
        before = dict(environment)
        assert keep_programs(environment) is None
        assert environment == before and not any(tmp_path.iterdir())


def test_where_nothing_can_be_written_there_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    assert keep_programs(environment) is None and "JAX_COMPILATION_CACHE_DIR" not in environment


def test_the_directory_is_the_platforms(tmp_path, monkeypatch):
    assert user_cache({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    for platform, expected in (("linux", ".cache"), ("darwin", "Library/Caches")):
        monkeypatch.setattr(sys, "platform", platform)
        assert user_cache({"XDG_CACHE_HOME": "relative"}) == user_cache({}) == tmp_path / expected


def test_halves_go_and_whole_programs_stay(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    directory = keep_programs(dict(environment))
    assert directory is not None and directory == tmp_path / "jaxprune" / "xla"
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (directory / name).write_bytes(b"12345678")
    with filelock.FileLock(directory / ".lockfile"):  # its writer is alive
        assert keep_programs(dict(environment)) == directory
    assert (directory / "half-cache").exists()
    given = dict(environment)
    assert keep_programs(given) == directory
    assert {path.name for path in directory.iterdir()} - {".lockfile"} == {"whole-cache", "whole-atime"}
    assert given["JAX_COMPILATION_CACHE_DIR"] == str(directory) and int(given["JAX_COMPILATION_CACHE_MAX_SIZE"]) > 0
