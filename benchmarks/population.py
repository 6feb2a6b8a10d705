"""What training M runs in one program costs beside M single steps.

    python benchmarks/population.py [--members 8] [--layers 2] [--width 128] [--vocab 8192] [--rounds 9] [--batched]
    python benchmarks/population.py --topology v5e-4 [--finetune] [--members 8] ...

Both run in turn in one process; printed are medians and minima in milliseconds, and the ratio: above 1, the population
is faster. With GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command, steps are timed as `jaxprune` runs them.

With --topology nothing runs: the steps are compiled for one chip of a TPU slice (needs libtpu, no TPU), and printed are
the cycles that the compiler reckons its instructions take. They leave out copies behind the scenes, and what a chip
waits for between steps.
"""

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from train_step import random_batch, shape_of

from jaxprune.config import MeshConfig, OptimizerConfig, PruneConfig
from jaxprune.models.bert import bert
from jaxprune.models.losses import classification_loss, pretraining_loss
from jaxprune.plan.compile import devices
from jaxprune.plan.hlo import parse
from jaxprune.plan.slices import find
from jaxprune.pruning import init_masks
from jaxprune.training.compile import Program, compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.population import compile_population, stack
from jaxprune.training.sharding import make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"members": 8, "layers": 2, "width": 128, "vocab": 8192, "batch": 16, "length": 128, "rounds": 9}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batched", action=argparse.BooleanOptionalAction, help="default: as jaxprune decides")
    parser.add_argument("--finetune", action="store_true", help="a classifier instead of the pre-training heads")
    parser.add_argument("--topology", help="compile for this slice instead, such as v5e-4")
    args = parser.parse_args()
    (reckoned if args.topology else timed)(args)


def timed(args: argparse.Namespace) -> None:
    model = model_of(args)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    masks = jax.device_get(init_masks(params, PruneConfig().include))
    batch, key = batch_of(args), jax.random.key(1)
    single = steps_of(args, compile_steps, params, masks)
    states = [single.init(params, masks) for _ in range(args.members)]
    one = single.put(batch)
    many_params, many_masks = stack([params] * args.members), stack([masks] * args.members)
    many = steps_of(args, compile_population, many_params, many_masks, batched=args.batched)
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


def reckoned(args: argparse.Namespace) -> None:
    params = jax.eval_shape(model_of(args).init, jax.random.key(0))
    masks = jax.eval_shape(lambda: init_masks(params, PruneConfig().include))
    batch, key = batch_of(args), jax.eval_shape(lambda: jax.random.key(0))
    single = args.members * cycles(steps_of(args, compile_steps, params, masks), batch, key)
    print(f"{args.members} single steps    {single:12,} cycles", flush=True)
    many = [jax.tree.map(lambda x: jax.ShapeDtypeStruct((args.members, *x.shape), x.dtype), t) for t in (params, masks)]
    batches = stack([batch] * args.members)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), args.members))
    for name, batched in (("batched", True), ("in turn", False)):
        found = cycles(
            steps_of(args, compile_population, *many, batched=batched), batches, keys, 1 if batched else args.members
        )
        print(f"population {name} {found:12,} cycles, ratio {single / found:.2f}", flush=True)


def cycles(steps: Program, batch: dict[str, np.ndarray], keys: Any, members: int = 1) -> int:
    """What the TPU compiler reckons for a train step: the sum over its instructions, as often as each runs.

    It gives no number of passes for the one loop there is, that over `members` that take turns.
    """
    module = parse(steps.train.lower(steps.abstract, batch, keys).compile().as_text())
    total = 0
    for instruction in module.instructions.values():
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if found and instruction.computation not in module.fused:
            passes = members if instruction.computation in module.endless else 1
            total += int(found[1]) * passes * module.times.get(instruction.computation, 0)
    if (module.endless and members == 1) or not total:
        raise SystemExit("the compiler's text has no cycles, or a loop; this script was written for libtpu 0.0.42")
    return total


def steps_of(
    args: argparse.Namespace, compiler: Callable[..., Program], params: Any, masks: Any, **rest: Any
) -> Program:
    loss = classification_loss if args.finetune else pretraining_loss
    return compiler(
        params,
        masks,
        make_mesh(MeshConfig(), devices(find(args.topology))[:1] if args.topology else None),
        loss_fn=loss(model_of(args).apply),
        tx=adamw(OptimizerConfig(), 1000),
        prune=PruneConfig(),
        num_heads=shape_of(args).num_attention_heads,
        **rest,
    )


def model_of(args: argparse.Namespace) -> Any:
    if args.finetune:
        return bert(shape_of(args), head="classification", num_labels=2)
    return bert(shape_of(args), head="pretraining")


def batch_of(args: argparse.Namespace) -> dict[str, np.ndarray]:
    batch = random_batch(shape_of(args), args.batch, args.length)
    if not args.finetune:
        return batch
    tokens = {name: x for name, x in batch.items() if x.shape == (args.batch, args.length)}
    return tokens | {"labels": np.zeros(args.batch, np.int32), "example_weights": np.ones(args.batch, np.float32)}


if __name__ == "__main__":
    main()
