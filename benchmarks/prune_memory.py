"""Temporary bytes of BERT-Base's prune step on a TPU slice, by the compiler's own account; needs libtpu, no TPU.

Run from the repository root:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 PYTHONPATH=. python benchmarks/prune_memory.py --topology v5e-16

Prints per scope and mesh the HBM bytes of temporaries, those of one chip's shard of the prunable weights, their ratio,
and the CPU seconds to compile. What the compiler stages in HBM on the way from on-chip memory to the donated outputs
(weights and two moments) varies from program to program and is no copy of the shard. With jax 0.10.2 and libtpu
0.0.42.1 on v5e-16: 28.6 MB (global) and 33.7 MB (matrix) beside a shard of 27.2 MB with fsdp 16 (1.05 and 1.24 of it),
0 MB and 101.8 MB beside one of 435.9 MB with data 16 (0.00 and 0.23).
"""

import argparse
import math
import time

import jax

from jaxprune.config import PretrainConfig
from jaxprune.experiments.pretrain import blueprint_of
from jaxprune.experiments.program import compile_program
from jaxprune.experiments.pruning_plan import included
from jaxprune.plan import compiler
from jaxprune.plan.slices import find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e-16", help="slice")
    parser.add_argument("--scopes", nargs="+", default=["global", "matrix"], help="scopes")
    args = parser.parse_args()
    where = find(args.topology)
    devices = compiler.devices(where)
    print("scope    data  fsdp  temporaries MB  shard MB  ratio  compile CPU s")
    for scope in args.scopes:
        for data, fsdp in ((1, where.chips), (where.chips, 1)):
            cfg = PretrainConfig(mesh={"data": data, "fsdp": fsdp}, prune={"scope": scope, "sparsity": 0.7, "end": 100})
            cfg = cfg.model_copy(update={"prune": included(cfg.prune, cfg.model)})
            began = time.process_time()
            steps = compile_program(blueprint_of(cfg), devices)
            compiled = compiler.compile_prune(steps)
            masks = jax.tree.leaves(steps.abstract.masks)
            shard = sum(4 * math.prod(mask.sharding.shard_shape(mask.shape)) for mask in masks)
            temporary, seconds = compiled.memory.temp_size_in_bytes, time.process_time() - began
            row = f"{scope:8}{data:5}{fsdp:6}{temporary / 1e6:16.1f}{shard / 1e6:10.1f}{temporary / shard:7.2f}"
            print(f"{row}{seconds:15.0f}", flush=True)


if __name__ == "__main__":
    main()
