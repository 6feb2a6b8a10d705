"""`jaxprune doctor`, and what a resumed run promises."""

import resource

import pytest

from jaxprune.cli import main
from jaxprune.errors import EXIT_DISK
from jaxprune.experiments import doctor
from jaxprune.experiments.environment import environment
from jaxprune.experiments.promise import promise

SHOWN = {"python", "jaxprune", "packages", "devices", "machine", "promise", "workdir", "disk", "locks", "clock"}


def test_a_sound_machine(tmp_path, capsys):
    assert main(["doctor", "--workdir", str(tmp_path / "not" / "there")]) == 0
    out = capsys.readouterr().out
    lines = dict(line[9:].split(maxsplit=1) for line in out.splitlines())
    assert lines.keys() >= SHOWN and "fault" not in out
    assert lines["locks"] == "a second run is kept out" and lines["promise"] == "bitwise"
    assert lines["workdir"].startswith(str(tmp_path)) and not [*tmp_path.iterdir()]


def test_a_directory_that_takes_nothing_is_a_fault(capsys):
    assert main(["doctor", "--workdir", "/proc/none"]) == EXIT_DISK
    (fault,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault")]
    assert "workdir" in fault and "/proc" in fault and "choose another directory" in fault


def test_what_is_short_is_a_warning(tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (doctor.FEW_FILES - 1, hard))
    try:
        (few,) = doctor.limits(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert few.level == "warning" and f"{doctor.FEW_FILES - 1} open files" in few.words
    monkeypatch.setattr(doctor, "LITTLE_ROOM", 1e30)
    assert {looked.about for looked in doctor.directory(tmp_path) if looked.level == "warning"} == {"workdir"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "bitwise"),
        ({"date": "2030-01-01", "command": "other"}, "bitwise"),
        ({"packages": environment()["packages"] | {"jax": "9"}}, "statistical: jax 9 -> "),
        ({"devices": ["TPU v5e"] * 8}, "statistical: devices 8 x TPU v5e -> "),
        ({"mesh": {"data": 4, "fsdp": 2}}, "statistical: mesh data 4 fsdp 2 -> data 8 fsdp 1 since the last start"),
        ({"cores": 99}, "statistical: cores 99 -> "),
    ],
)
def test_what_a_start_promises_after_another(change, words):
    now = environment(mesh={"data": 8, "fsdp": 1})
    assert promise(now, now | change).startswith(words)


def test_a_gpu_promises_bits_only_when_told_to_sum_in_order():
    gpu = environment() | {"backend": "gpu", "XLA_FLAGS": ""}
    assert promise(gpu).startswith("statistical: a GPU sums in any order unless XLA_FLAGS has --xla_gpu_determin")
    assert promise(gpu | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}) == "bitwise"
