"""What training M runs in one program costs beside M single steps.

    python benchmarks/population.py [--members 8] [--layers 2] [--width 128] [--vocab 8192] [--rounds 9] [--batched]

Both run in turn in one process; printed are medians and minima in milliseconds, and the ratio: above 1, the population
is faster. `jaxprune` runs with other settings of malloc; benchmarks/train_step.py says how to time them.
"""

import argparse
import time

import jax
import numpy as np
from train_step import random_batch, shape_of

from jaxprune.config import MeshConfig, OptimizerConfig, PruneConfig
from jaxprune.models.bert import bert
from jaxprune.models.losses import pretraining_loss
from jaxprune.pruning import init_masks
from jaxprune.training.compile import compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.population import compile_population, stack
from jaxprune.training.sharding import make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"members": 8, "layers": 2, "width": 128, "vocab": 8192, "batch": 16, "length": 128, "rounds": 9}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batched", action=argparse.BooleanOptionalAction, help="default: as jaxprune decides")
    args = parser.parse_args()
    cfg = shape_of(args)
    model = bert(cfg, head="pretraining")
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    masks = jax.device_get(init_masks(params, PruneConfig().include))
    batch, key = random_batch(cfg, args.batch, args.length), jax.random.key(1)
    shared = {
        "loss_fn": pretraining_loss(model.apply),
        "tx": adamw(OptimizerConfig(), 1000),
        "prune": PruneConfig(),
        "num_heads": cfg.num_attention_heads,
    }
    single = compile_steps(params, masks, make_mesh(MeshConfig()), **shared)
    states = [single.init(params, masks) for _ in range(args.members)]
    one = single.put(batch)
    many_params, many_masks = stack([params] * args.members), stack([masks] * args.members)
    many = compile_population(many_params, many_masks, make_mesh(MeshConfig()), **shared, batched=args.batched)
    population = many.init(many_params, many_masks)
    batches, keys = many.put_whole(stack([batch] * args.members)), jax.random.split(key, args.members)
    times: dict[str, list[float]] = {"singles": [], "population": []}
    for _ in range(args.rounds + 1):
        began = time.perf_counter()
        states = [jax.block_until_ready(single.train(state, one, key)[0]) for state in states]
        between = time.perf_counter()
        population = jax.block_until_ready(many.train(population, batches, keys)[0])
        times["singles"].append(1e3 * (between - began))
        times["population"].append(1e3 * (time.perf_counter() - between))
    for name, values in times.items():
        kept = values[1:]  # the first round compiles
        print(f"{name:10s} median {np.median(kept):8.1f} ms, min {min(kept):8.1f} ms, n {len(kept)}")
    ratios = np.divide(times["singles"][1:], times["population"][1:])
    print(f"ratio      median {np.median(ratios):.2f} for {args.members} members on {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main()
