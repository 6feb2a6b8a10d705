"""What a hard-masked train step costs beside an unmasked one, and one that learns from a teacher of its own size.

    python benchmarks/train_step.py [--layers 2] [--width 128] [--vocab 30522] [--rounds 15]

The steps run in turn in one process; printed are medians in milliseconds and the median of the ratios round by round.
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command shows what huge pages are worth on a CPU.
"""

import argparse
import time

import jax
import numpy as np

from jaxprune.config import MeshConfig, ModelConfig, OptimizerConfig
from jaxprune.models.bert import BERT, bert
from jaxprune.models.distillation import Compared, distillation_loss
from jaxprune.models.losses import pretraining_loss
from jaxprune.pruning import init_masks, pruner
from jaxprune.training.compile import compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.sharding import make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 2), ("width", 128), ("vocab", 30522), ("batch", 16), ("length", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    cfg = shape_of(args)
    model = bert(cfg, head="pretraining")
    params = jax.jit(model.init)(jax.random.key(0))
    masked = init_masks(params, BERT.prunable)
    batch = random_batch(cfg, args.batch, args.length)
    key = jax.random.key(1)
    steps = {}
    plain = pretraining_loss(model.apply)
    layers = tuple(range(cfg.num_hidden_layers))
    compared = {
        "logits": Compared(True, 2.0, False, 0, layers),
        "relations": Compared(False, 1.0, False, cfg.num_attention_heads, layers),
    }
    losses = {name: distillation_loss("pretraining", model.apply, model.apply, c) for name, c in compared.items()}
    unmasked = jax.tree.map(lambda _: None, params)
    for name, masks, loss_fn in (
        ("unmasked", unmasked, plain),
        ("hard masks", masked, plain),
        *((f"teacher: {name}", masked, loss) for name, loss in losses.items()),
    ):
        frozen = () if loss_fn is plain else params
        program = compile_steps(
            params,
            masks,
            make_mesh(MeshConfig()),
            loss_fn=loss_fn,
            frozen=frozen,
            tx=adamw(OptimizerConfig(), 1000),
            pruner=pruner(),
        )
        state = program.init(params, masks)
        if masks is masked:
            state, _ = program.prune(state, program.amounts(0.7), key)
        state, _ = program.train(state, frozen, batch, key)  # compiles
        steps[name] = [program, jax.block_until_ready(state), [], frozen]
    for _ in range(args.rounds):
        for measured in steps.values():
            began = time.perf_counter()
            measured[1] = jax.block_until_ready(measured[0].train(measured[1], measured[3], batch, key)[0])
            measured[2].append(1e3 * (time.perf_counter() - began))
    for name, (_, _, times, _) in steps.items():
        print(f"{name:18s} median {np.median(times):7.1f} ms, min {min(times):7.1f} ms, n {len(times)}")
    base = {"hard masks": "unmasked"} | {f"teacher: {name}": "hard masks" for name in losses}
    for name, other in base.items():
        ratios = np.divide(steps[name][2], steps[other][2])
        minima = min(steps[name][2]) / min(steps[other][2])
        print(f"{name} / {other}: median {np.median(ratios):.3f}, of minima {minima:.3f}")


def shape_of(args: argparse.Namespace) -> ModelConfig:
    return ModelConfig(
        vocab_size=args.vocab,
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=max(args.width // 64, 1),
        intermediate_size=4 * args.width,
    )


def random_batch(cfg: ModelConfig, batch: int, length: int, predictions: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "input_ids": rng.integers(0, cfg.vocab_size, (batch, length), np.int32),
        "token_type_ids": np.zeros((batch, length), np.int32),
        "attention_mask": np.ones((batch, length), np.int32),
        "masked_positions": rng.integers(0, length, (batch, predictions), np.int32),
        "masked_ids": rng.integers(0, cfg.vocab_size, (batch, predictions), np.int32),
        "masked_weights": np.ones((batch, predictions), np.float32),
        "next_sentence_label": rng.integers(0, 2, batch, np.int32),
    }


if __name__ == "__main__":
    main()
