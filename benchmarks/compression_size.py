"""How large a pruned model is in each form, at several sparsities and types: `size.csv` and `size.md`.

    python benchmarks/compression_size.py [--model DIR --name MiniLM] [--sparsities 0 0.5 ...] [--out DIR]

Two models, pruned by magnitude, each of the architecture's `prunable` matrices alike: --model (all-MiniLM-L6-v2), and
BERT-Base's geometry with random weights. Files of ours are written and measured; gzip -6 and zstd -3 pack the dense
file. Computed are CSR (32-bit columns and row starts), ONNX's sparse initializers (64-bit positions, where that is
smaller), Core ML's bit mask and values, and the bound: n H(s) bits for where the kept weights are, and their values.
What is not pruned counts everywhere, in the same type; int8 has a float32 scale per row.
"""

import argparse
import csv
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config.sections import ModelConfig
from jaxprune.export.source import Source, read_source
from jaxprune.export.sparse import sparse_arrays
from jaxprune.export.values import stored_as
from jaxprune.models.bert import BERT
from jaxprune.models.tensors import leaf_shapes, tensor_name
from jaxprune.models.weights import write_safetensors

FORMS = ("dense", "ours", "coded", "gzip", "zstd", "csr", "onnx_sparse", "coreml", "bitmap_and_values", "bound")
DTYPES = ("float32", "bfloat16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face directory; without it BERT-Base's geometry alone")
    parser.add_argument("--name", default="MiniLM", help="what the tables call it")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0, 0.5, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--layers", type=int, default=12, help="of BERT-Base's geometry")
    parser.add_argument("--out", type=Path, default=Path("results/compression"))
    args = parser.parse_args()
    rows = []
    for name, source in models(args.model, args.name, args.layers):
        for sparsity in args.sparsities:
            pruned = prune(source, sparsity)
            for dtype in DTYPES:
                rows.append({"model": name, "sparsity": sparsity, "dtype": dtype} | sizes(pruned, dtype))
                print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "size.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (args.out / "size.md").write_text(tables(rows))


def models(model: str | None, called: str, layers: int) -> list[tuple[str, Source]]:
    """The given one, and BERT-Base's geometry: encoder, embeddings and pooler."""
    cfg = ModelConfig(num_hidden_layers=layers)
    rng = np.random.default_rng(0)
    leaves = leaf_shapes(BERT, cfg, head="regression").items()
    tensors = {
        tensor_name(BERT, path): 0.02 * rng.standard_normal(leaf.shape[::-1], np.float32)
        for path, leaf in leaves
        if not path.startswith("classifier")
    }
    tensors = {name: array.T if "embeddings.weight" in name else array for name, array in tensors.items()}
    base = Source("BERT-Base", Path(), cfg, BERT, tensors, {}, "", "")
    given = [(Path(model).resolve().name, read_source(model))] if model else []
    return [
        *((("MiniLM" if "mini" in str(model).lower() else name), source) for name, source in given),
        ("BERT-Base", base),
    ]


def prune(source: Source, sparsity: float) -> Source:
    """The smallest weights of each prunable matrix zero, and its masks."""
    names = prunable(source)
    tensors, masks = dict(source.tensors), {}
    for name in names if sparsity else ():
        array = np.ascontiguousarray(tensors[name])
        order = np.abs(array).reshape(-1)
        count = round(sparsity * array.size)
        mask = np.ones(array.size, bool)
        mask[np.argpartition(order, count)[:count]] = False
        masks[name] = mask.reshape(array.shape)
        tensors[name] = np.where(masks[name], array, np.float32(0))
    return source._replace(tensors=tensors, masks=masks)


def prunable(source: Source) -> list[str]:
    """Names in the source of the architecture's prunable matrices."""
    names = []
    for path in leaf_shapes(source.record, source.model, head="pretraining"):
        if any(re.fullmatch(regex, path) for regex in source.record.prunable):
            name = tensor_name(source.record, path)
            names += [n for n in (name, name.removeprefix(source.record.prefix)) if n in source.tensors]
    return names


def sizes(source: Source, dtype: str) -> dict[str, int]:
    """Bytes of each form."""
    stored = {name: stored_as(array, dtype) for name, array in source.tensors.items()}
    arrays = {name: np.ascontiguousarray(values) for name, (values, _) in stored.items()}
    arrays |= {f"{name}.scales": scales for name, (_, scales) in stored.items() if scales is not None}
    out: dict[str, Any] = {"matrices": len(source.masks)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write_safetensors(path, arrays, {}, {})
        out |= {"dense": path.stat().st_size, "gzip": gzipped(path), "zstd": zstandard(path)}
        for form, coded in (("ours", False), ("coded", True)):
            write_safetensors(path, *sparse_arrays(source, dtype=dtype, coded=coded), {})
            out[form] = path.stat().st_size
    rest = sum(array.nbytes for name, array in arrays.items() if name not in source.masks)
    out |= dict.fromkeys(("csr", "onnx_sparse", "coreml", "bitmap_and_values", "bound"), rest)
    for name, mask in source.masks.items():
        n, kept, size = mask.size, int(np.count_nonzero(mask)), arrays[name].itemsize
        share = kept / n
        entropy = -sum(n * p * np.log2(p) for p in (share, 1 - share) if p) / 8
        out["csr"] += kept * (size + 4) + 4 * (len(mask) + 1)
        out["onnx_sparse"] += min(kept * (size + 8), n * size)
        out["coreml"] += n // 8 + kept * size
        out["bitmap_and_values"] += n // 8 + kept * size
        out["bound"] += round(entropy) + kept * size
    return out


def gzipped(path: Path) -> int:
    packer, size = zlib.compressobj(6, zlib.DEFLATED, 31), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size += len(packer.compress(block))
    return size + len(packer.flush())


def zstandard(path: Path) -> int | str:
    """ "" without the library."""
    try:
        import zstandard
    except ImportError:
        return ""
    packer, size = zstandard.ZstdCompressor(level=3).compressobj(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size += len(packer.compress(block))
    return size + len(packer.flush())


def tables(rows: list[dict[str, Any]]) -> str:
    """Megabytes (10^6 bytes) in Markdown, a table per model."""
    lines = ["Made by `benchmarks/compression_size.py`; MB of 10^6 bytes.\n"]
    heads = ("sparsity", "values", "dense", "ours", "coded", "gzip", "zstd", "CSR", "ONNX sparse", "Core ML", "bound")
    heads = (*heads, "ours / bitmap + values", "coded / bound")
    keys = ("dense", "ours", "coded", "gzip", "zstd", "csr", "onnx_sparse", "coreml", "bound")
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += [f"\n## {model}\n", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in rows:
            if row["model"] == model:
                cells = [f"{100 * row['sparsity']:g} %", row["dtype"]]
                cells += [f"{row[key] / 1e6:.1f}" if row[key] != "" else "" for key in keys]
                ratios = (row["ours"] / row["bitmap_and_values"], row["coded"] / row["bound"])
                lines.append(f"| {' | '.join([*cells, *(f'{ratio:.4f}' for ratio in ratios)])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
