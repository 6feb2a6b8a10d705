"""What pruned and smaller models cost to run, and what they are worth, in four runtimes: `speed.csv`, `scores.csv` and
`speed.md`.

    python benchmarks/compression_speed.py NAME=DIR [NAME=DIR ...] --work DIR --glue GLUE [--rounds 3] [--out DIR]

Each DIR is a Hugging Face directory: a sentence encoder, scored by cosine on STS-B's dev set (100 times Spearman's
correlation), or a classifier of SST-2, scored by accuracy. The first is what the others are held against. Every model
is exported once in each form, into --work, and scored once, in float32 by onnxruntime alone, since the others compute
the same; what is there already is not made again. A measurement is a process of its own that loads a model, answers,
and times a text of 16 and of 128 tokens and 32 of each, all processors in use. Rounds go through all of them in turn;
medians are told. Loading counts from the runtime's import being done to the first answer; memory is the process's peak.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas

RUNTIMES = {"jax": "", "torch": "", "onnxruntime": "onnx", "openvino": "openvino"}
FORMS = [("jax", "float32"), ("torch", "float32")] + [
    (runtime, dtype) for runtime in ("onnxruntime", "openvino") for dtype in ("float32", "int8")
]
SHAPES = ((1, 16), (1, 128), (32, 16), (32, 128))
TIMED = [f"ms {batch}x{length}" for batch, length in SHAPES]
KEYS = ["model", "runtime", "dtype"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Answer = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Of int64 inputs, the logits of a classifier, or the last hidden states."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--work", type=Path, required=True, help="for exported models and scores")
    parser.add_argument("--glue", type=Path, help="without it nothing is scored")
    parser.add_argument("--rounds", type=int, default=3, help="0: scores alone")
    parser.add_argument("--seconds", type=float, default=1.0, help="for which each shape is repeated")
    parser.add_argument("--runtimes", nargs="+", choices=[*RUNTIMES], default=[*RUNTIMES])
    parser.add_argument("--out", type=Path, default=Path("results/compression"))
    args = parser.parse_args()
    models = dict(model.split("=", 1) for model in args.models)
    forms = [form for form in FORMS if form[0] in args.runtimes]
    places = {(n, *form): exported(models[n], args.work / n, *form) for n in models for form in forms}
    scores = args.work / "scores.csv"
    for key, place in places.items():
        known = pandas.read_csv(scores).to_dict("records") if scores.exists() else []
        counts = key[1] == "onnxruntime" or key[2] == "int8"
        if args.glue and counts and key not in {tuple(row[name] for name in KEYS) for row in known}:
            row = dict(zip(KEYS, key, strict=True)) | measured(key[1], place, "--glue", str(args.glue))
            pandas.DataFrame([*known, row]).to_csv(scores, index=False, float_format="%.2f")
            print(row, flush=True)
    rows = []
    for number in range(args.rounds):
        for key, place in places.items():
            row = dict(zip(KEYS, key, strict=True)) | {"round": number, "MB": size(place, key[1]) / 1e6}
            rows.append(row | measured(key[1], place, "--seconds", str(args.seconds)))
            print(rows[-1], flush=True)
    if rows:
        args.out.mkdir(parents=True, exist_ok=True)
        frame = pandas.DataFrame(rows)
        frame.to_csv(args.out / "speed.csv", index=False, float_format="%.4g")
        worth = pandas.read_csv(scores) if scores.exists() else pandas.DataFrame(columns=[*KEYS, "score"])
        worth = worth[worth["model"].isin(models)]
        worth.to_csv(args.out / "scores.csv", index=False, float_format="%.2f")
        (args.out / "speed.md").write_text(table(frame, worth))


def measured(runtime: str, place: Path, *words: str) -> dict[str, Any]:
    """What a worker says of a model."""
    argv = [sys.executable, __file__, "--worker", runtime, str(place), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def exported(model: str, place: Path, runtime: str, dtype: str) -> Path:
    """Where a model lies for a runtime."""
    from jaxprune.cli import main as jaxprune

    if not (form := RUNTIMES[runtime]):
        return Path(model).resolve()
    target = place / f"{form}-{dtype}"
    if target.exists():
        return target
    if code := jaxprune(["export", model, str(target), "--format", form, "--dtype", dtype]):
        sys.exit(code)
    return target


def size(place: Path, runtime: str) -> int:
    """Bytes of the files with the weights."""
    names = {"onnxruntime": "model.onnx", "openvino": "openvino_model.*"}
    return sum(path.stat().st_size for path in place.glob(names.get(runtime, "*.safetensors")))


def table(frame: pandas.DataFrame, scores: pandas.DataFrame) -> str:
    """Medians over rounds; least and most times as fast as the first model in the same runtime, in float32."""
    medians = frame.groupby(KEYS, sort=False)[["MB", "load s", "peak MB", *TIMED]].median()
    worth = scores.set_index(KEYS)["score"]
    heads = ("model", "runtime", "type", "file, MB", "load, s", "peak, MB", "a text of 16, ms", "of 128, ms")
    heads += ("32 of 16, texts/s", "32 of 128, texts/s", "times as fast", "score")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for key, row in medians.iterrows():
        dense = medians.loc[(frame["model"][0], key[1], "float32")]
        ratios = [dense[name] / row[name] for name in TIMED]
        cells = [*key, f"{row['MB']:.1f}", f"{row['load s']:.2f}", f"{row['peak MB']:.0f}"]
        cells += [f"{row[name]:.1f}" for name in TIMED[:2]] + [f"{32e3 / row[name]:.0f}" for name in TIMED[2:]]
        score = worth.get(key, worth.get((key[0], "onnxruntime", "float32")))
        cells += [f"{min(ratios):.2f} to {max(ratios):.2f}", "" if score is None else f"{score:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def worker() -> None:
    """Measure one model in one runtime, and print it as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime")
    parser.add_argument("place", type=Path)
    parser.add_argument("--glue", type=Path)
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args(sys.argv[2:])
    load = {"jax": in_jax, "torch": in_torch, "onnxruntime": in_onnxruntime, "openvino": in_openvino}[args.runtime]
    answer, loaded = load(args.place)
    if args.glue:
        print(json.dumps({"score": scored(args.place, args.glue, answer)}))
        return
    row = {"load s": loaded}
    for name, (batch, length) in zip(TIMED, SHAPES, strict=True):
        inputs, times, began = random_inputs(batch, length), [], time.perf_counter()
        answer(inputs)
        while len(times) < 3 or time.perf_counter() - began < args.seconds:
            start = time.perf_counter()
            answer(inputs)
            times.append(time.perf_counter() - start)
        row[name] = 1e3 * float(np.median(times))
    print(json.dumps(row | {"peak MB": peak()}))


def random_inputs(batch: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    return dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))


def peak() -> float:
    """The most memory that this process held, in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def loading(load: Callable[[], Answer]) -> tuple[Answer, float]:
    """What `load` makes, and the seconds to its first answer."""
    start = time.perf_counter()
    answer = load()
    answer(random_inputs(1, 16))
    return answer, time.perf_counter() - start


def is_classifier(place: Path) -> bool:
    names = json.loads((place / "config.json").read_text()).get("architectures") or [""]
    return "SequenceClassification" in names[0]


def in_jax(place: Path) -> tuple[Answer, float]:
    import jax

    from jaxprune.models import architecture_named
    from jaxprune.models.folder import read_folder

    classifies = is_classifier(place)
    head, labels = ("classification", 2) if classifies else ("similarity", 0)

    def load() -> Answer:
        read = read_folder(place, head=head, num_labels=labels)
        model = architecture_named(read.model.architecture).build(read.model, head=head, num_labels=labels)
        params = jax.tree.map(jax.numpy.asarray, read.params)

        @jax.jit
        def run(params: Any, batch: Any) -> jax.Array:
            out = model.apply(params, batch, hidden_states=not classifies)
            return out["logits"] if classifies else out["hidden_states"][-1]

        return lambda inputs: np.asarray(run(params, {name: ids.astype(np.int32) for name, ids in inputs.items()}))

    return loading(load)


def in_torch(place: Path) -> tuple[Answer, float]:
    import torch
    import transformers

    from jaxprune.export.source import read_source
    from jaxprune.export.torch_model import torch_model

    transformers.logging.disable_progress_bar()
    kind = "AutoModelForSequenceClassification" if is_classifier(place) else "AutoModel"

    def load() -> Answer:
        if json.loads((place / "config.json").read_text()).get("head_dim"):  # transformers cannot
            module = torch_model(read_source(str(place))).module
            call = lambda inputs: module(*inputs.values())[0]  # noqa: E731
        else:
            model = getattr(transformers, kind).from_pretrained(place).eval()
            call = lambda inputs: model(**inputs)[0]  # noqa: E731

        def answer(inputs: dict[str, np.ndarray]) -> np.ndarray:
            with torch.inference_mode():
                return call({name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()

        return answer

    return loading(load)


def in_onnxruntime(place: Path) -> tuple[Answer, float]:
    import onnxruntime

    def load() -> Answer:
        session = onnxruntime.InferenceSession(place / "model.onnx")
        return lambda inputs: session.run(None, inputs)[0]

    return loading(load)


def in_openvino(place: Path) -> tuple[Answer, float]:
    import openvino

    def load() -> Answer:
        properties = json.loads((place / "openvino_properties.json").read_text())
        model = openvino.Core().compile_model(place / "openvino_model.xml", "CPU", properties)
        return lambda inputs: model(inputs)[0]

    return loading(load)


def scored(place: Path, glue: Path, answer: Answer) -> float:
    """100 times Spearman's correlation on STS-B, or the accuracy on SST-2, of the dev set."""
    from scipy.stats import spearmanr
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()

    def outputs(texts: list[str], classify: bool) -> np.ndarray:
        out = []
        for start in range(0, len(texts), 32):
            encoded = tokenizer.encode_batch(texts[start : start + 32] + [""] * (start + 32 - len(texts)))
            length = max(16, -(-max(len(each.ids) for each in encoded) // 16) * 16)  # few shapes to compile
            ids, mask = (
                np.array([[*getattr(each, key), *[0] * (length - len(each.ids))] for each in encoded])
                for key in ("ids", "attention_mask")
            )
            result = answer(dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True)))
            out.append(result if classify else (result * mask[..., None]).sum(1) / mask.sum(1, keepdims=True))
        return np.concatenate(out)[: len(texts)]

    task = "SST-2" if is_classifier(place) else "STS-B"
    frame = pandas.read_csv(glue / task / "dev.tsv", sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
    if task == "SST-2":
        return 100 * float((outputs([*frame["sentence"]], True).argmax(1) == frame["label"]).mean())
    a, b = (outputs([*frame[name]], False) for name in ("sentence1", "sentence2"))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return 100 * float(spearmanr(cosines, frame["score"])[0])


if __name__ == "__main__":
    worker() if sys.argv[1:2] == ["--worker"] else main()
