"""What a tiny pruned run survives: it is stopped, starved and damaged at random, started again, and must end the same.

Run from the repository root, in the background:

    PYTHONPATH=. nice -n 19 python benchmarks/soak.py --minutes 60 --seed 0 --out results/soak

The faults of other seeds that lie in `--out` stay in its table, so several may run side by side.

A round is one workdir: the same command is started again and again, and each time a seeded fault stops the process, or
one of two processes of a job, at a random moment; then files of the workdir are damaged. Once the run is finished it is
compared with the undisturbed one, bit for bit: losses, prunes, weights, moments, masks, place in the data, its model.
Writes `faults.csv` (every fault) and `README.md` (a table by kind) after every round. A fault counts as *recovered*
where its round ended with the same bits, as *refused* where the documented error came instead (then the undamaged
workdir is put back), else as *lost*: its workdir is kept beside the table and the exit code is 1.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import filelock  # noqa: E402
import workflow  # noqa: E402
from damage import WAYS, damage  # noqa: E402

PROGRAM = """
import json, os, resource, signal, sys, threading
from pathlib import Path
from jaxprune.training import loop

fault, workdir = json.loads(sys.argv[1]), Path(sys.argv[2])

def act():
    if fault["kind"] == "signal":
        os.kill(os.getpid(), fault["number"])
    if fault["kind"] == "disk":
        metrics = workdir / "metrics.jsonl"
        size = max(metrics.stat().st_size if metrics.exists() else 0, 1500) + fault["room"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if fault["kind"] == "descriptors":
        count = len(os.listdir("/proc/self/fd")) + fault["room"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

class Stop(loop.Stop):
    steps = 0
    def requested(self, step):
        Stop.steps += 1
        if Stop.steps <= fault.get("pauses", 0):
            os.kill(os.getpid(), signal.SIGSTOP)
        if Stop.steps == fault.get("step"):
            threading.Timer(fault["delay"], act).start()
        return super().requested(step)

loop.Stop = Stop
from jaxprune.cli import main
sys.exit(main(sys.argv[3:]))
"""
"""The command line behind a fault, which comes some milliseconds after so many steps of this start."""

STEPS = 30
SECONDS = 1200.0
"""That a process may take: the machine may have other work."""
CONFIG: dict[str, Any] = {
    "steps": STEPS,
    "prune": {"begin": 6, "end": 21, "every": 5},
    "train": {"save_every": 3, "keep": 3, "log_every": 1, "eval_batches": 2},
}
JOB = {"mesh": {"data": 2, "fsdp": 1}}
SIGNALS = {
    "killed (SIGKILL)": signal.SIGKILL,
    "asked to stop (SIGTERM)": signal.SIGTERM,
    "interrupted (SIGINT)": signal.SIGINT,
    "hung up (SIGHUP)": signal.SIGHUP,
}
MADE = """
`PYTHONPATH=. python benchmarks/soak.py --minutes 40 --seed {first} --out results/soak`, seeds {seeds}, each until its
time was over or it was stopped; last written {date}, each on one core, shared with other work, of {cpu}, Linux, Python
{python}. `faults.csv` lists every fault; [fuzzing.md](fuzzing.md) says what fuzzing ran.
"""
MEANING = """
{rounds} rounds of a one-layer encoder, {jobs} of them jobs of two processes: {steps} steps, pruned between steps 6 and
21, saved every 3. A round is stopped, starved and damaged until it is finished, then compared with the undisturbed run,
bit for bit: losses, prunes, weights, moments, masks, place in the data, its model. *Refused*: the documented error
came, twice, instead of other bits; the run went on once the undamaged files were put back.
"""
SAVED, PEER, DISK, RESOURCES, NO_CHECKPOINT = 75, 76, 74, 71, 78


class Fault(NamedTuple):
    """One thing that was done."""

    seed: int
    round: int
    processes: int
    kind: str
    outcome: str = ""


class Lost(Exception):
    """Something that must not happen happened."""


class Round:
    """One workdir on its way to the end."""

    def __init__(self, number: int, seed: int, tiny: workflow.Tiny, config: Path, reference: Path, count: int):
        self.seed, self.number, self.count = seed, number, count
        self.tiny, self.config, self.reference = tiny, config, reference
        self.rng = random.Random(f"{seed} {number}")
        self.workdir = reference.parent / f"round-{seed}-{number}"
        self.faults: list[Fault] = []
        self.forbidden: dict[int, int] = {}
        """Damaged checkpoint -> inode of its directory: another one under that name was saved since."""

    def add(self, kind: str, outcome: str = "") -> None:
        """Count a fault; without an outcome it shares that of the round."""
        self.faults.append(Fault(self.seed, self.number, self.count, kind, outcome))

    def inode(self, step: int) -> int:
        """Of a checkpoint's directory; 0 where there is none."""
        path = self.workdir / "checkpoints" / str(step)
        return path.stat().st_ino if path.exists() else 0

    def start(self, faults: list[dict[str, Any]]) -> list[workflow.Running]:
        """The command, in one process per fault."""
        self.forbidden = {step: inode for step, inode in self.forbidden.items() if self.inode(step) == inode}
        argv = ["pretrain", self.config, "--workdir", self.workdir]
        if len(faults) == 1:
            return [self.tiny.start(json.dumps(faults[0]), self.workdir, *argv, program=PROGRAM)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [
            self.tiny.start(
                *(json.dumps(fault), self.workdir, *argv, f"--distributed=127.0.0.1:{port},{len(faults)},{number}"),
                program=PROGRAM,
            )
            for number, fault in enumerate(faults)
        ]

    def to_the_end(self) -> None:
        """Start, stop and damage until the run is finished and its model was lost once; Lost on what may not be."""
        while not (self.workdir / "result.json").exists():
            if self.count == 1:
                self.one_process()
            else:
                self.two_processes()
            if not (self.workdir / "result.json").exists():
                self.damage()
        self.compare()
        self.lose_the_model()
        self.faults = [fault if fault.outcome else fault._replace(outcome="recovered") for fault in self.faults]

    def undisturbed(self, codes: set[int]) -> list[workflow.Done]:
        """A start without a fault, which must end in one of these ways."""
        done = [process.finish(SECONDS) for process in self.start([{"kind": "none"}] * self.count)]
        for each in done:
            self.check(each, codes if self.count == 1 else codes | {PEER})
        return done

    def moment(self) -> dict[str, Any]:
        """A random one of this start."""
        return {"step": self.rng.choice([1, 2, 3, 4, 5, 6, 8]), "delay": self.rng.random() * 0.06}

    def one_process(self) -> None:
        """Start and stop it in one of the ways there are."""
        kind = self.rng.choice([*SIGNALS, *SIGNALS, "killed (SIGKILL)", "stopped", "disk", "descriptors"])
        if kind in SIGNALS:
            fault = {"kind": "signal", "number": SIGNALS[kind]}
            expected = -signal.SIGKILL if kind.startswith("killed") else SAVED
        elif kind == "stopped":
            fault, expected = {"kind": "signal", "number": signal.SIGSTOP}, 0
        else:
            fault = {
                "kind": kind,
                "room": self.rng.choice([0, 1, 2, 3, 5, 8] if kind != "disk" else [0, 100, 900, 9000]),
            }
            expected = DISK if kind == "disk" else RESOURCES
        names = {
            "disk": "no room on the disk",
            "descriptors": "no more open files",
        }
        (process,) = self.start(
            [fault | self.moment() | {"pauses": self.rng.choice([0, 1, 1, 2]) if kind != "stopped" else 0}]
        )
        for _ in range(8):
            if not self.wait_until_stopped(process):
                break
            time.sleep(self.rng.random() / 4)
            process.signal(signal.SIGCONT)
            self.add("stopped and continued (SIGSTOP)")
        done = process.finish(SECONDS)
        self.check(done, {0, expected})
        if done.code == expected and kind != "stopped":
            self.add(names.get(kind, kind))

    def two_processes(self) -> None:
        """Start a job and stop one of its processes, or both."""
        kind = self.rng.choice(
            ["killed (SIGKILL)", "killed (SIGKILL)", "both killed", "asked to stop (SIGTERM)", "stopped"]
        )
        victim, moment = self.rng.randrange(2), self.moment()
        faults: list[dict[str, Any]] = [{"kind": "none"}, {"kind": "none"}]
        number = SIGNALS.get(kind, signal.SIGSTOP if kind == "stopped" else signal.SIGKILL)
        faults[victim] = {"kind": "signal", "number": number} | moment
        if kind == "both killed":
            faults[1 - victim] = faults[victim] | {"delay": self.rng.random() * 0.06}
        processes = self.start(faults)
        if kind == "stopped" and self.wait_until_stopped(processes[victim]):
            survivor = processes[1 - victim].finish(SECONDS)
            self.check(survivor, {0, PEER, -signal.SIGABRT} if victim == 0 else {0, PEER})
            processes[victim].signal(signal.SIGKILL)
            processes[victim].finish(30)
            if survivor.code:
                self.add(f"process {victim} of two stopped (SIGSTOP)")
            return
        done = [process.finish(SECONDS) for process in processes]
        if kind.startswith("asked"):
            for each in done:
                self.check(each, {0, SAVED, PEER})
            if done[0].code == SAVED:
                self.add(f"process {victim} of two asked to stop (SIGTERM)")
            return
        self.check(done[victim], {0, -signal.SIGKILL, PEER} | ({-signal.SIGABRT} if victim == 1 else set()))
        others = {0, PEER, -signal.SIGABRT} | ({-signal.SIGKILL} if kind == "both killed" else set())
        self.check(done[1 - victim], others)
        if done[victim].code:
            self.add(
                "both of two processes killed" if kind == "both killed" else f"process {victim} of two killed (SIGKILL)"
            )

    def wait_until_stopped(self, process: workflow.Running) -> bool:
        """Whether it was stopped by a signal before it ended."""
        while process.runs():
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{process.process.pid}/stat").read_text()
                if stat.rpartition(")")[2].split()[0] == "T":
                    return True
            time.sleep(0.01)
        return False

    def check(self, done: workflow.Done, codes: set[int]) -> None:
        """Lost where a process did not end in one of these ways, with a line, from the newest good checkpoint."""
        if done.code not in codes or "Traceback" in done.err:
            raise Lost(f"ended with {done.code}, not in {codes}: {done.err}")
        if resumed := re.search(r"resuming at step (\d+)", done.err):
            if int(resumed[1]) in self.forbidden:
                raise Lost(f"went on from a damaged checkpoint: {done.err}")
            self.forbidden = {}

    def damage(self) -> None:
        """Damage the workdir; where nothing good is left, see it refused, and put back what was there."""
        if self.rng.random() < 0.05 or not self.workdir.exists():
            return
        backup = self.workdir.with_name(f"{self.workdir.name}-before")
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(self.workdir, backup)
        from jaxprune.training.checkpoint import step_damage, steps_in

        before = {step for step in steps_in(self.workdir) if step_damage(self.workdir, step) is None}
        damages = damage(self.workdir, self.rng)
        bad = frozenset().union(*(each.steps for each in damages))
        unknown = any(each.kind.startswith("contents.json") for each in damages)  # whether a step was ever saved
        if bad >= before and (before or unknown):
            for again in range(2):
                # Process 1 of two is told by process 0, or finds it gone.
                self.undisturbed({NO_CHECKPOINT} if self.count == 1 else {NO_CHECKPOINT, 2, -signal.SIGABRT})
                if again:
                    shutil.rmtree(self.workdir)
                    shutil.move(backup, self.workdir)
                    self.forbidden = {step: self.inode(step) for step in self.forbidden}
            for each in damages:
                if each.steps or each.kind.startswith("contents.json"):
                    self.add(each.kind, "refused")
            return
        self.forbidden |= {step: self.inode(step) for step in bad}
        for each in damages:
            self.add(each.kind)

    def compare(self) -> None:
        """Lost where the finished run is not the undisturbed one, bit for bit."""
        from test_resume import assert_same_run

        try:
            assert_same_run(self.workdir, self.reference)
        except AssertionError as error:
            raise Lost(f"other bits: {str(error)[:2000]}") from None

    def lose_the_model(self) -> None:
        """Damage the model of the finished run: the same command writes it again."""
        model = self.workdir / "hf" / "model.safetensors"
        way = self.rng.choice([*WAYS])
        WAYS[way](model, self.rng)
        while any(done.code for done in self.undisturbed({0})):
            pass
        if model.read_bytes() != (self.reference / "hf" / "model.safetensors").read_bytes():
            raise Lost("the model that was written again has other bytes")
        self.add(f"the model of a finished run {way}")


def write(out: Path, faults: list[Fault], seed: int) -> None:
    """faults.csv and the table by kind, of these and of the other seeds' faults that are there."""
    out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{out}.lock"):
        if (out / "faults.csv").exists():
            with (out / "faults.csv").open(newline="") as file:
                rows = [Fault(int(s), int(r), int(p), *more) for s, r, p, *more in [*csv.reader(file)][1:]]
            faults = sorted([row for row in rows if row.seed != seed] + faults, key=lambda row: row[:2])
        with (out / "faults.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Fault._fields, *faults])
        (out / "README.md").write_text(page(faults))


def page(faults: list[Fault]) -> str:
    """The table by kind, and what was done."""
    seeds = sorted({fault.seed for fault in faults})
    rounds = {(fault.seed, fault.round): fault.processes for fault in faults}
    outcomes = ("recovered", "refused", "lost")
    made = MADE.format(
        first=seeds[0],
        seeds=", ".join(map(str, seeds)),
        date=datetime.date.today(),
        cpu=cpu(),
        python=platform.python_version(),
    )
    meaning = MEANING.format(rounds=len(rounds), jobs=sum(count == 2 for count in rounds.values()), steps=STEPS)
    lines = ["# What a tiny pruned run survives", ""]
    for text in (made, meaning):
        lines += [*textwrap.wrap(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False), ""]
    lines += [
        "| fault | tried | recovered, bit-equal | refused as documented | lost |",
        "|---|---|---|---|---|",
    ]
    for kind in sorted({fault.kind for fault in faults}):
        counts = [sum(f.kind == kind and f.outcome == outcome for f in faults) for outcome in outcomes]
        lines.append(f"| {kind} | {sum(counts)} | {' | '.join(map(str, counts))} |")
    counts = [sum(f.outcome == outcome for f in faults) for outcome in outcomes]
    lines.append(f"| **all** | **{sum(counts)}** | {' | '.join(f'**{n}**' for n in counts)} |")
    return "\n".join(lines) + "\n"


def cpu() -> str:
    """The name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument(
        "--folder", type=Path, help="for workdirs and compiled programs; kept, so the next soak begins sooner"
    )
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    faults, lost = [], 0
    os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1")
    import jax

    jax.config.update("jax_num_cpu_devices", 2)  # as many as a job has, for its checkpoints
    with ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))
        tiny = workflow.make(Path(folder).resolve())
        references = []
        for count, changes in ((1, {}), (2, JOB)):
            config = tiny.pretrain_yaml(tiny.root / f"{count}.yaml", **CONFIG, **changes)
            first = Round(0, args.seed, tiny, config, tiny.root / "none", count)
            first.workdir = tiny.root / f"reference-{count}"
            while True:
                done = [process.finish(SECONDS) for process in first.start([{"kind": "none"}] * count)]
                if [each.code for each in done] == [0] * count:
                    break
                print(done, flush=True)
            references.append((config, first.workdir))
        number = 0
        while time.monotonic() < until:
            number += 1
            count = 2 if number % 4 == 0 else 1
            this = Round(number, args.seed, tiny, *references[count - 1], count)
            try:
                this.to_the_end()
                shutil.rmtree(this.workdir)
            except Lost as error:
                lost += 1
                print(f"round {number}: {[fault.kind for fault in this.faults[-4:]]}: {error}", flush=True)
                args.out.mkdir(parents=True, exist_ok=True)
                shutil.move(this.workdir, args.out / this.workdir.name)
                this.faults = [fault._replace(outcome=fault.outcome or "lost") for fault in this.faults]
                if not this.faults or this.faults[-1].outcome != "lost":
                    this.add("a start", "lost")
            faults += this.faults
            write(args.out, faults, args.seed)
            print(f"round {number}: {len(this.faults)} faults, {len(faults)} in all, {lost} rounds lost", flush=True)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
