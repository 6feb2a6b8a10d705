"""tpu_scripts/ against a stub gcloud that records its arguments, fails on demand, and has workers that really run."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "tpu_scripts"
CALLED = [name for name in sorted(p.name for p in SCRIPTS.glob("*.sh")) if name not in ("common.sh", "worker.sh")]
SLICE = ["--name", "bert-s70", "--zone", "us-west4-a", "--project", "proj-123"]
TRAIN = ["--", "jaxprune", "pretrain", "recover.yaml", "--workdir", "/mnt/jaxprune/runs/s70", "--distributed"]
PLACE = ["--zone=us-west4-a", "--project=proj-123", "--quiet"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "bert-s70"]

GCLOUD = """#!{python} -IS
import json, os, pathlib, shutil, signal, subprocess, sys
root, argv = pathlib.Path('{root}'), sys.argv[1:]
state, homes = root / "state", [root / f"worker{{i}}" for i in range(2)]

def pop(name):
    path = root / name
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("\\n".join(lines[1:]))
    return lines[0] if lines else ""

def end(message, code):
    print(f"ERROR: (gcloud) {{message}}", file=sys.stderr)
    sys.exit(code)

def wipe():
    for home in homes:
        pid = home / "jaxprune-run" / "pid"
        if pid.exists() and not (home / "jaxprune-run" / "code").exists():
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)

with (root / "calls.jsonl").open("a") as file:
    file.write(json.dumps(["gcloud", *argv]) + "\\n")
group, verb, name = argv[2:5]
if said := pop(f"fail.{{verb}}"):
    end(said, 255 if verb in ("ssh", "scp") else 1)
if (group, verb) == ("queued-resources", "describe"):
    if now := pop("states"):
        state.write_text(now) if now != "NONE" else state.unlink(missing_ok=True)
    if not state.exists():
        end(f"NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{{name}}' was not found", 1)
    print("WARNING: a notice of no importance", file=sys.stderr)
    print(state.read_text())
elif verb == "create":
    if state.exists():
        end("ALREADY_EXISTS", 1)
    state.write_text(pop("created") or "ACTIVE")
    for home in homes:
        home.mkdir()
elif verb == "delete":
    wipe()
    state.unlink()
elif verb == "describe":
    print("v5litepod-8\\tREADY\\tHEALTHY")
elif not state.exists() or state.read_text() != "ACTIVE":
    end("the slice is not there", 255)
elif verb == "scp":
    for home in homes:
        shutil.copy(argv[4], home / argv[5].partition(":")[2])
elif verb == "ssh":
    which, command = [word.partition("=")[2] for word in argv[5:7]]
    code = 0
    for home in homes if which == "all" else [homes[int(which)]]:
        env = {{**os.environ, "HOME": str(home), "JAXPRUNE_MOUNT": str(root / "mnt")}}
        code = subprocess.run(["bash", "-c", command], cwd=home, env=env).returncode or code
    sys.exit(code)
"""

JAXPRUNE = """#!/bin/bash
worker=${{HOME##*/}}
printf '%s\\n' "$worker" "$@" | tr '\\n' '|' >>{root}/runs && echo >>{root}/runs
fate=$(head -1 {root}/fates.$worker 2>/dev/null) && sed -i 1d {root}/fates.$worker
echo "fate: ${{fate:=0}}"
case $fate in
  preempted) printf SUSPENDED >{root}/state && exec sleep 300 ;;
  unreachable) yes 'no route to host' | head -6 >{root}/fail.ssh && exec sleep 300 ;;
  stuck) trap '' TERM && while :; do sleep 0.2; done ;;
  saves) trap 'exit 75' TERM && while :; do sleep 0.1; done ;;
  *) exit "$fate" ;;
esac
"""

RECORDER = """#!/bin/bash
printf '%s\\n' "${{0##*/}}" "$@" | tr '\\n' '|' >>{root}/tools && echo >>{root}/tools
case "${{0##*/}} $*" in
  *"-m uv --version") [[ -e {root}/uv ]] ;;
  *"pip install"*uv) touch {root}/uv ;;
  *"-m uv venv"*) mkdir -p "${{@: -1}}/bin" && touch "${{@: -1}}/bin/python" && chmod +x "${{@: -1}}/bin/python" ;;
  "sudo tee"*) cat >/dev/null ;;
  "mountpoint "*) [[ -e {root}/mounted ]] ;;
  "gcsfuse "* | *"mount -t nfs"*) touch {root}/mounted ;;
esac
"""


class Cloud:
    """A stub cloud in a directory: its calls, its scripted failures, and two workers with homes of their own."""

    def __init__(self, root: Path):
        self.root, self.bin = root, root / "bin"
        (root / "home").mkdir()
        self.bin.mkdir()
        names = {"gcloud": GCLOUD, "jaxprune": JAXPRUNE}
        names |= dict.fromkeys(
            ["python3", "sudo", "curl", "gcsfuse", "mountpoint", "lsb_release", "sky", "xpk"], RECORDER
        )
        for name, text in names.items():
            (self.bin / name).write_text(text.format(root=root, python=sys.executable))
            (self.bin / name).chmod(0o755)

    def __call__(self, script: str, *args: str, code: int = 0, **env: str) -> subprocess.CompletedProcess:
        settings = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.root / "home"), "TPU_POLL": "0"}
        settings |= {"TPU_FROM": "jaxprune==0.1.0", **env}
        done = subprocess.run([SCRIPTS / script, *args], env=settings, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done

    def write(self, name: str, *lines: object) -> None:
        (self.root / name).write_text("\n".join(map(str, lines)))

    def lines(self, name: str) -> list[list[str]]:
        path = self.root / name
        return [line.strip("|").split("|") for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def calls(self) -> list[list[str]]:
        path = self.root / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def verbs(self) -> list[str]:
        return [call[4] for call in self.calls]

    def forget(self) -> None:
        (self.root / "calls.jsonl").unlink(missing_ok=True)

    def up(self, *fates: str) -> "Cloud":
        """An ACTIVE slice with worker.sh on it; a fate per worker for the next run of jaxprune."""
        self("create.sh", *SLICE, "--type", "v5litepod-8")
        for i, fate in enumerate(fates):
            self.write(f"fates.worker{i}", fate)
        for home in ("worker0", "worker1"):
            shutil.copy(SCRIPTS / "worker.sh", self.root / home / "jaxprune-worker.sh")
        self.forget()
        return self

    def states(self) -> list[str]:
        out = self("status.sh", *SLICE).stdout
        return [line.split()[2] for line in out.splitlines() if line.startswith("jaxprune-worker")]

    def settled(self, *wanted: str) -> None:
        for _ in range(100):
            if (states := self.states()) == list(wanted):
                return
            time.sleep(0.1)
        raise AssertionError(states)


@pytest.fixture
def cloud(tmp_path):
    yield Cloud(tmp_path)
    for pid in tmp_path.glob("worker*/jaxprune-run/pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):  # over, or never begun
            os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("path", sorted(SCRIPTS.iterdir()), ids=lambda p: p.name)
def test_files_are_short_and_strict(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 140
    if path.suffix == ".sh":
        assert os.access(path, os.X_OK)
        assert path.name == "common.sh" or "set -euo pipefail" in lines
        subprocess.run(["bash", "-n", path], check=True)


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck; the `test` extra brings it")
    done = subprocess.run([shellcheck, "-x", "-P", "SCRIPTDIR", *SCRIPTS.glob("*.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", CALLED)
def test_help_names_every_option_and_calls_nothing(cloud, script):
    said = cloud(script, "--help").stdout
    options = re.search(r'OPTIONS="(.*)"', (SCRIPTS / script).read_text()).group(1).split()
    said += cloud("create.sh", "--help").stdout + cloud("setup.sh", "--help").stdout + cloud("run.sh", "--help").stdout
    assert f"{script} --" in said and all(f"--{name}" in said for name in options)
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-64", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
@pytest.mark.parametrize(("tier", "flags"), [("spot", ["--spot"]), ("reserved", ["--reserved"]), ("on-demand", [])])
def test_create_from_nothing(cloud, kind, runtime, tier, flags):
    cloud("create.sh", *SLICE, "--type", kind, "--tier", tier)
    assert cloud.verbs == ["describe", "create", "describe"]
    words = ["gcloud", "compute", "tpus", "queued-resources", "create", "bert-s70", "--node-id=bert-s70"]
    words += [f"--accelerator-type={kind}", f"--runtime-version={runtime}", "--labels=jaxprune=bert-s70"]
    assert cloud.calls[1] == [*words, *flags, *PLACE]


def test_settings_may_come_from_the_environment(cloud):
    place = {"TPU_NAME": "a", "TPU_ZONE": "europe-west4-b", "TPU_TYPE": "v6e-8"}
    cloud("create.sh", TPU_VALID_FOR="6h", TPU_RUNTIME="my-image.1", **place)
    assert {"--runtime-version=my-image.1", "--valid-until-duration=6h", "--spot"} <= set(cloud.calls[1])
    assert not any("project" in word for word in cloud.calls[1])


def test_create_leaves_an_active_slice_alone(cloud):
    cloud.write("state", "ACTIVE")
    cloud("create.sh", *SLICE, "--type", "v4-8")
    assert cloud.verbs == ["describe"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_replaces_what_has_ended(cloud, state):
    cloud.write("state", state)
    cloud("create.sh", *SLICE, "--type", "v4-8")
    assert [verb for verb in cloud.verbs if verb != "describe"] == ["delete", "create"]
    assert "--force" in cloud.calls[cloud.verbs.index("delete")]


def test_create_waits_for_its_turn(cloud):
    queue = ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    cloud.write("states", "SUSPENDING", "DELETING", "NONE", *queue)
    cloud("create.sh", *SLICE, "--type", "v4-8")
    assert cloud.verbs == ["describe"] * 3 + ["create"] + ["describe"] * 5


def test_create_gives_up_after_asking_three_times(cloud):
    cloud.write("created", *["FAILED"] * 9)
    said = cloud("create.sh", *SLICE, "--type", "v4-8", code=1).stderr
    assert cloud.verbs.count("create") == 3 and "three times" in said


def test_create_bears_a_passing_failure(cloud):
    cloud.write("fail.describe", "UNAVAILABLE", "UNAVAILABLE")
    cloud.write("fail.create", "UNAVAILABLE")
    cloud("create.sh", *SLICE, "--type", "v4-8")
    assert cloud.verbs == ["describe"] * 3 + ["create"] * 2 + ["describe"]


def test_what_gcloud_cannot_say_is_not_taken_for_absence(cloud):
    cloud.write("fail.describe", *["PERMISSION_DENIED"] * 9)
    assert "PERMISSION_DENIED" in cloud("create.sh", *SLICE, "--type", "v4-8", code=1).stderr
    cloud("delete.sh", *SLICE, code=1)
    assert set(cloud.verbs) == {"describe"}


@pytest.mark.parametrize(
    ("script", "args", "said"),
    [
        ("create.sh", ["--zone", "us-west4-a", "--type", "v4-8"], "--name is missing"),
        ("create.sh", ["--name", "a;reboot", "--zone", "us-west4-a", "--type", "v4-8"], "--name a;reboot"),
        ("create.sh", ["--name", "$(reboot)", "--zone", "us-west4-a"], "--name $(reboot)"),
        ("create.sh", ["--name", "a\nb", "--zone", "us-west4-a", "--type", "v4-8"], "--name a"),
        ("create.sh", ["--name", "--force", "--zone", "us-west4-a"], "--name --force"),
        ("delete.sh", ["--name", "A", "--zone", "us-west4-a"], "--name A"),
        ("delete.sh", ["--name", "a", "--zone", "us-west4"], "--zone us-west4"),
        ("delete.sh", [*SLICE, "--project", "p --x"], "--project p --x"),
        ("delete.sh", [*SLICE, "--type", "v4-8"], "no option --type"),
        ("delete.sh", [*SLICE, "--zone"], "--zone needs a value"),
        ("delete.sh", [*SLICE, "now"], "now is not understood"),
        ("create.sh", [*SLICE], "--type is missing"),
        ("create.sh", [*SLICE, "--type", "h100-8"], "--type h100-8"),
        ("create.sh", [*SLICE, "--type", "tpu7x-8"], "gke_xpk.sh"),
        ("create.sh", [*SLICE, "--type", "v4-8", "--tier", "free"], "--tier free"),
        ("create.sh", [*SLICE, "--type", "v4-8", "--valid-for", "soon"], "--valid-for soon"),
        ("setup.sh", [*SLICE, "--from", ""], "--from is missing"),
        ("setup.sh", [*SLICE, "--from", "jaxprune;reboot"], "--from jaxprune;reboot"),
        ("setup.sh", [*SLICE, "--from", "none/jaxprune-9-py3-none-any.whl"], "no such file"),
        ("setup.sh", [*SLICE, "--store", "/mnt/x"], "--store /mnt/x"),
        ("setup.sh", [*SLICE, "--python", "2.7;x"], "--python 2.7;x"),
        ("run.sh", [*SLICE], "no command"),
        ("run.sh", [*SLICE, "--hours", "1.5", *TRAIN], "--hours 1.5"),
        ("babysit.sh", [*SLICE, "--type", "v4-8"], "no command"),
        ("babysit.sh", [*SLICE, "--type", "v9-8", *TRAIN], "--type v9-8"),
        ("logs.sh", [*SLICE, "--worker", "0;x"], "--worker 0;x"),
        ("sweep.sh", [*SLICE, "--store", "gs://b-k-t", "--shards", "0", *TRAIN], "--shards 0"),
        ("sweep.sh", [*SLICE, "--store", "gs://b-k-t", "--shards", "2", "--type", "v4-16", *TRAIN], "--type v4-16"),
        ("gke_xpk.sh", [*SLICE, "--step", "run", *TRAIN], "--image is missing"),
        ("gke_xpk.sh", [*SLICE, "--step", "all"], "--step all"),
    ],
)
def test_wrong_input_is_one_line_and_calls_nothing(cloud, script, args, said):
    done = cloud(script, *args, code=2)
    assert said in done.stderr.splitlines()[0] and ".sh: " in done.stderr
    assert cloud.calls == [] and cloud.lines("tools") == []


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("create.sh", ["--type", "v5litepod-8", "--valid-for", "6h"]),
        ("setup.sh", ["--from", "git+https://example.org/x/jaxprune@main", "--store", "gs://b-k-t"]),
        ("run.sh", ["--hours", "12", *TRAIN, "--note", "it's $HOME; 5 > 4"]),
        ("run.sh", ["--stop"]),
        ("status.sh", []),
        ("logs.sh", ["--worker", "1"]),
        ("delete.sh", []),
        ("babysit.sh", ["--type", "v5litepod-8", "--then-delete", *TRAIN]),
    ],
)
def test_a_dry_run_prints_what_a_real_one_calls(cloud, script, args):
    printed = cloud(script, *SLICE, "--dry-run", *args)
    assert cloud.calls == [] and printed.stderr == ""
    if script not in ("create.sh", "babysit.sh"):
        cloud.up("0", "0")
        cloud("run.sh", *SLICE, "--", "jaxprune")
        cloud.settled("exit:0", "exit:0")
        cloud.forget()
    cloud(script, *SLICE, *args)
    real = cloud.calls
    looks = [i for i, call in enumerate(real) if call[6:7] == ["--command=bash jaxprune-worker.sh state"]]
    for i in reversed(looks[1:]):  # it looked more than once before the workers were done
        del real[i - 1 : i + 1]
    assert [shlex.split(line) for line in printed.stdout.splitlines()] == real


def test_setup_installs_once_and_mounts_once(cloud, tmp_path):
    wheel = tmp_path / "dist" / "jaxprune-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_text("wheel")
    cloud.up()
    for _ in range(2):
        cloud("setup.sh", *SLICE, "--from", str(wheel), "--store", "gs://b-k-t")
    tools = cloud.lines("tools")
    for home in (tmp_path / "worker0", tmp_path / "worker1"):
        assert (home / wheel.name).read_text() == "wheel"
        assert (home / "jaxprune-worker.sh").read_text() == (SCRIPTS / "worker.sh").read_text()
        installed = [call for call in tools if call[-1].endswith(f" @ file://{home}/{wheel.name}")]
        assert len(installed) == 2 and installed[0][-1].startswith("jaxprune[tpu,gcs] @")
    assert sum(call[:4] == ["python3", "-m", "uv", "venv"] for call in tools) == 2
    mount = ["gcsfuse", "--implicit-dirs", "--metadata-cache-ttl-secs=0", "b-k-t", str(tmp_path / "mnt")]
    assert tools.count(mount) == 1  # the stub's workers share one mount


def test_setup_leaves_a_running_command_alone(cloud):
    cloud.up("saves", "0")("run.sh", *SLICE, *TRAIN)
    cloud.settled("running", "exit:0")
    assert cloud("setup.sh", *SLICE).stdout == "a command is running; left as it is\n"
    assert {call[-4] for call in cloud.lines("tools") if call[-1] == "jaxprune[tpu,gcs]==0.1.0"} == {
        f"{cloud.root}/worker1/jaxprune-venv/bin/python"
    }


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ("jaxprune", "jaxprune[tpu,gcs]"),
        ("jaxprune==0.1.0", "jaxprune[tpu,gcs]==0.1.0"),
        ("jaxprune>=0.1", "jaxprune[tpu,gcs]>=0.1"),
        ("git+https://example.org/x/jaxprune@v1", "jaxprune[tpu,gcs] @ git+https://example.org/x/jaxprune@v1"),
    ],
)
def test_setup_takes_releases_and_git(cloud, source, spec):
    cloud.up()("setup.sh", *SLICE, "--from", source, "--store", "10.0.0.2:/share")
    tools = cloud.lines("tools")
    assert sum(call[-1] == spec for call in tools) == 2
    assert ["sudo", "mount", "-t", "nfs", "10.0.0.2:/share", str(cloud.root / "mnt")] in tools


def test_ssh_may_fail_twice(cloud):
    cloud.up().write("fail.ssh", "no route to host", "no route to host")
    cloud("setup.sh", *SLICE)
    assert cloud.verbs == ["scp", "ssh", "ssh", "ssh"]
    cloud.write("fail.ssh", *["no route to host"] * 3)
    cloud("setup.sh", *SLICE, code=255)


def test_run_passes_every_word_to_every_worker(cloud):
    words = ["jaxprune", "pretrain", "a b.yaml", "--note", 'it\'s "5 > 4"; $HOME `x` $(y) *']
    cloud.up()("run.sh", *SLICE, "--", *words)
    cloud.settled("exit:0", "exit:0")
    assert sorted(cloud.lines("runs")) == [["worker0", *words[1:]], ["worker1", *words[1:]]]
    assert "fate: 0" in cloud("logs.sh", *SLICE, "--worker", "1").stdout


def test_run_again_does_nothing_then_resumes(cloud):
    cloud.up("saves", "saves")
    for _ in range(2):
        cloud("run.sh", *SLICE, *TRAIN)
    assert cloud.states() == ["running", "running"]
    assert "another command is running" in cloud("run.sh", *SLICE, "--", "jaxprune", "other", code=2).stderr
    cloud("run.sh", *SLICE, "--stop")
    assert cloud.states() == ["exit:75", "exit:75"]
    cloud("run.sh", *SLICE, *TRAIN)
    cloud.settled("exit:0", "exit:0")
    assert len(cloud.lines("runs")) == 4


def test_stop_ends_what_swallows_sigterm(cloud):
    cloud.up("stuck", "saves")("run.sh", *SLICE, *TRAIN)
    cloud("run.sh", *SLICE, "--stop", "--grace", "1")
    assert cloud.states() == ["exit:137", "exit:75"]
    groups = [int(pid.read_text()) for pid in cloud.root.glob("worker*/jaxprune-run/pid")]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            state, _, group, *_ = stat.read_text().rpartition(")")[2].split()
            assert int(group) not in groups or state == "Z"


def test_a_time_limit_is_exit_code_124(cloud):
    cloud.up("saves")
    home = cloud.root / "worker0"
    env = {"PATH": f"{cloud.bin}:/usr/bin:/bin", "HOME": str(home)}
    subprocess.run(["bash", "jaxprune-worker.sh", "start", "0.0002", "jaxprune"], cwd=home, env=env, check=True)
    cloud.settled("exit:124", "idle")


def test_a_worker_that_lost_its_command_says_so(cloud):
    cloud.up("saves", "saves")("run.sh", *SLICE, *TRAIN)
    os.killpg(int((cloud.root / "worker1/jaxprune-run/pid").read_text()), signal.SIGKILL)
    (cloud.root / "worker1/jaxprune-run/pid").write_text("")
    assert cloud.states() == ["running", "lost"]


def test_delete_of_nothing_and_of_a_slice(cloud):
    assert "nothing to delete" in cloud("delete.sh", *SLICE).stderr
    assert cloud.verbs == ["describe"]
    cloud.up()("delete.sh", *SLICE)
    assert cloud.calls[-1] == [*SSH[:3], "queued-resources", "delete", "bert-s70", "--force", *PLACE]
    assert cloud("status.sh", *SLICE).stdout == "queued resource bert-s70: NONE\n"


def babysit(cloud: Cloud, *args: str, code: int = 0) -> list[str]:
    """The verbs of a run of babysit.sh that change something."""
    cloud("babysit.sh", *SLICE, "--type", "v5litepod-8", *args, *TRAIN, code=code)
    return [verb for verb in cloud.verbs if verb in ("create", "delete")]


def test_babysit_sees_a_run_through_a_preemption(cloud):
    cloud.write("fates.worker0", "preempted", "0")
    cloud.write("fates.worker1", "stuck", "0")
    assert babysit(cloud) == ["create", "delete", "create"]
    assert sorted(cloud.lines("runs")) == [["worker0", *TRAIN[2:]]] * 2 + [["worker1", *TRAIN[2:]]] * 2


@pytest.mark.parametrize("code", [0, 2, 71, 74, 77, 78, 1, 124])
def test_babysit_stops_on_codes_that_a_restart_does_not_cure(cloud, code):
    cloud.write("fates.worker0", code)
    cloud.write("fates.worker1", code and 76)
    done = cloud("babysit.sh", *SLICE, "--type", "v5litepod-8", "--then-delete", *TRAIN, code=code)
    assert [verb for verb in cloud.verbs if verb in ("create", "delete")] == ["create", "delete"]
    assert len(cloud.lines("runs")) == 2
    assert ("make room, then call this again" in done.stderr) == (code == 74)


@pytest.mark.parametrize("code", [75, 76, 79, 134, 137, 143])
def test_babysit_restarts_on_the_same_slice(cloud, code):
    cloud.write("fates.worker0", code)
    cloud.write("fates.worker1", 0)
    assert babysit(cloud) == ["create"]
    assert len(cloud.lines("runs")) == 4


def test_babysit_gives_up(cloud):
    cloud.write("fates.worker0", *[75] * 9)
    assert babysit(cloud, "--retries", "2", code=1) == ["create"]
    assert len(cloud.lines("runs")) == 6


def test_babysit_kills_a_worker_whose_peer_is_gone(cloud):
    cloud.write("fates.worker0", "76", "0")
    cloud.write("fates.worker1", "stuck", "0")
    assert babysit(cloud, "--grace", "0") == ["create"]
    assert len(cloud.lines("runs")) == 4


def test_babysit_replaces_a_slice_that_answers_no_more(cloud):
    cloud.write("fates.worker0", "unreachable", "0")
    cloud.write("fates.worker1", "saves", "0")
    assert babysit(cloud) == ["create", "delete", "create"]


def test_babysit_bears_a_failing_setup(cloud):
    cloud.write("fail.scp", *["no route to host"] * 4)
    assert babysit(cloud) == ["create"]
    assert len(cloud.lines("runs")) == 2


def test_sweep_is_one_managed_job_per_shard(cloud):
    study = ["--", "jaxprune", "study", "/mnt/jaxprune/study.yaml", "--workdir", "/mnt/jaxprune/my study"]
    args = [*SLICE, "--store", "gs://b-k-t", "--shards", "3", "--type", "v6e-8", *study]
    printed = cloud("sweep.sh", "--dry-run", *args).stdout
    assert cloud.lines("tools") == []
    cloud("sweep.sh", *args)
    jobs = cloud.lines("tools")
    assert [shlex.split(line) for line in printed.splitlines()] == jobs
    assert jobs[1] == [
        *["sky", "jobs", "launch", "--yes", "--detach-run", "--name=bert-s70-2", "--infra=gcp/us-west4/us-west4-a"],
        *["--gpus=tpu-v6e-8", "--use-spot", "--env", "FROM=jaxprune==0.1.0", "--env", "PYTHON=3.12"],
        *["--env", "STORE=gs://b-k-t", "--env"],
        "COMMAND=jaxprune study /mnt/jaxprune/study.yaml --workdir '/mnt/jaxprune/my study' --shard 2/3",
        "tpu_scripts/sweep.yaml",
    ]


def test_the_jobs_of_a_sweep_find_their_files_and_variables():
    import yaml

    task = yaml.safe_load((SCRIPTS / "sweep.yaml").read_text())
    assert set(re.findall(r"\$(\w+)", task["setup"] + task["run"])) - {"PATH"} == set(task["envs"])
    assert [Path(SCRIPTS.parent, path).is_file() for path in task["file_mounts"].values()] == [True]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 76, 79, 134, 137, 139]


@pytest.mark.parametrize(
    ("args", "call"),
    [
        (["--step", "cluster"], ["cluster", "create", "--tpu-type=tpu7x-8", "--num-slices=1", "--spot"]),
        (
            ["--step", "cluster", "--reservation", "mine"],
            ["cluster", "create", "--tpu-type=tpu7x-8", "--num-slices=1", "--reservation=mine"],
        ),
        (
            ["--step", "run", "--image", "reg/jaxprune:1", *TRAIN],
            [
                *[
                    "workload",
                    "create",
                    "--workload=bert-s70-run",
                    "--tpu-type=tpu7x-8",
                    "--docker-image=reg/jaxprune:1",
                ],
                *["--max-restarts=20", "--restart-on-exit-codes=75,76,79", f"--command={shlex.join(TRAIN[1:])}"],
            ],
        ),
        (["--step", "stop"], ["workload", "delete", "--workload=bert-s70-run"]),
        (["--step", "delete"], ["cluster", "delete"]),
    ],
)
def test_gke_recipe(cloud, args, call):
    printed = cloud("gke_xpk.sh", *SLICE, "--dry-run", *args).stdout
    assert cloud.lines("tools") == []
    cloud("gke_xpk.sh", *SLICE, *args)
    assert cloud.lines("tools") == [["xpk", *call, "--cluster=bert-s70", *PLACE[:2]]]
    assert shlex.split(printed) == cloud.lines("tools")[0]


def test_the_commands_of_the_page_are_understood(cloud):
    """Every code block of docs/tpu.md runs as one shell, dry; every training command in it has a valid config."""
    from jaxprune.config import COMMANDS
    from jaxprune.config.load import parse

    page = (SCRIPTS.parent / "docs" / "tpu.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    places = {"PROJECT": "proj-123", "HOST/REPOSITORY@REF": "example.org/x/jaxprune@v1", "RESERVATION": "mine"}
    script = "set -e\n" + "".join(blocks).replace("USD_PER_CHIP_HOUR", "1.2")
    for word, value in places.items():
        script = re.sub(rf"\b{word}\b", value, script)
    tools = "".join(f"{name}() {{ :; }}\n" for name in ("gcloud", "pip", "hf", "sky", "jaxprune", "tail"))
    env = {"PATH": f"{cloud.bin}:/usr/bin:/bin", "HOME": str(cloud.root), "TPU_DRY_RUN": "yes"}
    done = subprocess.run(["bash", "-c", tools + script], cwd=SCRIPTS.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "should be" not in done.stderr, done.stderr
    assert cloud.calls == [] and cloud.lines("tools") == []
    for line in done.stdout.splitlines():
        for word in shlex.split(line):
            if word.startswith("--command=") and " pretrain " in word:  # as a worker's shell would read and run it
                train = f'cp() {{ :; }}; set -- {word.removeprefix("--command=")}; eval "${{@: -1}}"'
                subprocess.run(["bash", "-c", train], env=env, check=True)
    runs = cloud.lines("runs")
    assert len(runs) == page.count("exec jaxprune pretrain") > 4
    for _, command, path, *words, last in runs:
        at = words.index("--workdir")
        assert (command, last) == ("pretrain", "--distributed") and words[at + 1].startswith("/mnt/jaxprune/runs/")
        config = SCRIPTS.parent / path.removeprefix("/mnt/jaxprune/")
        parse(COMMANDS["pretrain"], config, words[:at] + words[at + 2 :], prog="jaxprune")
