"""Exact pruning thresholds against `jnp.quantile`, on weights of BERT-Base's shapes.

Run from the repository root:

    PYTHONPATH=. python benchmarks/threshold.py --rounds 5 --layers 12

Prints, per scope, the median seconds of `keep_top(scores, 0.7)` and of the plain reading (`jnp.quantile` of the scores
of each group, concatenated, and a comparison), run alternately, their ratio, and the temporary bytes of each compiled
program beside the bytes of the scores. `jnp.quantile` takes about a second per three million weights on two cores;
`--quantile-layers` lets it run on fewer layers, and its seconds are then per weight of that smaller tree, scaled up.
Then, per structure, the median seconds of a whole hard prune of the encoder to sparsity 0.5 (masks, +0.0 in weights,
the report), and its temporary bytes.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

from jaxprune.pruning import init_masks, keep_top, pruner


def weights(layers: int, dtype) -> dict[str, jax.Array]:
    """|w| of truncated-normal-like matrices: word embeddings, `layers` encoder layers, pooler."""
    shapes = {"embeddings/word_embeddings": (30522, 768), "pooler": (768, 768)}
    for i in range(layers):
        name = f"encoder/layer_{i:02}"
        shapes |= {f"{name}/attention/{part}/kernel": (768, 768) for part in ("query", "key", "value", "output")}
        shapes |= {f"{name}/intermediate/kernel": (768, 3072), f"{name}/output/kernel": (3072, 768)}
    key = jax.random.key(0)
    return {
        name: jnp.abs(0.02 * jax.random.normal(jax.random.fold_in(key, i), shape)).astype(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }


def compiled(scores, scope: str, method: str):
    """The compiled program, its temporary bytes and the seconds to compile it."""
    start = time.perf_counter()
    program = jax.jit(lambda x, s: keep_top(x, s, scope=scope, method=method)).lower(scores, jnp.float32(0.7)).compile()
    return program, program.memory_analysis().temp_size_in_bytes, time.perf_counter() - start


def seconds(program, scores) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    jax.block_until_ready(program(scores, jnp.float32(0.7)))
    return time.perf_counter() - start


def prune_seconds(prune, start) -> float:
    """Seconds of one prune."""
    before = time.perf_counter()
    jax.block_until_ready(prune(*start, jnp.float32(0.5)))
    return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers")
    parser.add_argument("--quantile-layers", type=int, default=0, help="encoder layers for jnp.quantile")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the scores")
    parser.add_argument(
        "--structures", nargs="*", default=["weights", "2:4", "block(32, 32)"], help="structures to time"
    )
    parser.add_argument("--scopes", nargs="+", default=["global", "matrix"], help="scopes to time")
    args = parser.parse_args()

    ours, plain = weights(args.layers, args.dtype), weights(args.quantile_layers, args.dtype)
    size, plain_size = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (ours, plain))
    megabytes = sum(x.nbytes for x in jax.tree.leaves(ours)) / 1e6
    print(f"{size:,} weights in {len(ours)} leaves, {megabytes:.0f} MB, on {jax.devices()[0].device_kind}")
    print(f"jnp.quantile runs on {plain_size:,} of them" if plain_size < size else "")
    print("scope      exact s  quantile s  ratio  temp MB  quantile temp MB  compile s")
    for scope in args.scopes:
        exact, exact_temp, compile_time = compiled(ours, scope, "exact")
        quantile, quantile_temp, _ = compiled(plain, scope, "quantile")
        seconds(exact, ours), seconds(quantile, plain)
        times = [(seconds(exact, ours), seconds(quantile, plain) * size / plain_size) for _ in range(args.rounds)]
        a, b = (statistics.median(column) for column in zip(*times))
        row = f"{scope:8}{a:10.3f}{b:12.2f}{b / a:7.1f}{exact_temp / 1e6:9.1f}{quantile_temp / 1e6:18.1f}"
        print(f"{row}{compile_time:11.1f}", flush=True)

    print("structure      prune s  temp MB")
    for structure in args.structures:
        start = ours, init_masks(ours, "encoder/.*")
        prune = jax.jit(partial(pruner(structure=structure).update, ())).lower(*start, jnp.float32(0.5)).compile()
        times = [prune_seconds(prune, start) for _ in range(args.rounds + 1)][1:]
        temporary = prune.memory_analysis().temp_size_in_bytes / 1e6
        print(f"{structure:14}{statistics.median(times):8.3f}{temporary:9.1f}", flush=True)


if __name__ == "__main__":
    main()
