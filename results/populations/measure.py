"""Eight members as one program against eight runs in turn, compilation included. Runs at commit d3c05bf alone.

git checkout d3c05bf && python measure.py > h100.json
"""

import json
import time
from typing import Any

import jax
import numpy as np
from jaxprune.training.population import compile_population, stack

from jaxprune.config import MeshConfig, ModelConfig, OptimizerConfig, PruneConfig
from jaxprune.models.bert import bert
from jaxprune.models.losses import classification_loss, pretraining_loss
from jaxprune.pruning import init_masks
from jaxprune.training.compile import compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.sharding import make_mesh

MEMBERS, VOCAB, BATCH, LENGTH, ROUNDS, STEPS = 8, 30522, 32, 64, 5, 7


def batch_of(finetune: bool) -> dict[str, np.ndarray]:
    rng, predictions = np.random.default_rng(0), 20
    zeros, ones = np.zeros((BATCH, LENGTH), np.int32), np.ones((BATCH, LENGTH), np.int32)
    batch = {"input_ids": rng.integers(0, VOCAB, (BATCH, LENGTH), np.int32), "token_type_ids": zeros}
    batch["attention_mask"] = ones
    if finetune:
        return batch | {"labels": np.zeros(BATCH, np.int32), "example_weights": np.ones(BATCH, np.float32)}
    return batch | {
        "masked_positions": rng.integers(0, LENGTH, (BATCH, predictions), np.int32),
        "masked_ids": rng.integers(0, VOCAB, (BATCH, predictions), np.int32),
        "masked_weights": np.ones((BATCH, predictions), np.float32),
        "next_sentence_label": rng.integers(0, 2, BATCH, np.int32),
    }


def measured(layers: int, width: int, finetune: bool, dtype: Any) -> dict[str, Any]:
    cfg = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        dtype=dtype,
    )
    model = bert(cfg, head="classification", num_labels=2) if finetune else bert(cfg, head="pretraining")
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    masks = jax.device_get(init_masks(params, PruneConfig().include))
    batch, key = batch_of(finetune), jax.random.key(1)
    keys = jax.random.split(key, MEMBERS)

    def build(compiler: Any, p: Any, m: Any, b: Any, k: Any, **rest: Any) -> Any:
        began = time.perf_counter()
        program = compiler(
            p,
            m,
            make_mesh(MeshConfig()),
            loss_fn=(classification_loss if finetune else pretraining_loss)(model.apply),
            tx=adamw(OptimizerConfig(), 1000),
            prune=PruneConfig(),
            num_heads=cfg.num_attention_heads,
            **rest,
        )
        rows = (program.put_whole if rest else program.put)(b)
        state = jax.block_until_ready(program.train(program.init(p, m), rows, k)[0])
        return program, state, rows, time.perf_counter() - began

    single, _, rows, compile_single = build(compile_steps, params, masks, batch, key)
    states = [single.init(params, masks) for _ in range(MEMBERS)]
    several = [stack([tree] * MEMBERS) for tree in (params, masks, batch)]
    many, population, all_rows, compile_many = build(compile_population, *several, keys, batched=True)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for i, state in enumerate(states):
            for _ in range(STEPS):
                state, _ = single.train(state, rows, key)
            states[i] = jax.block_until_ready(state)
        between = time.perf_counter()
        for _ in range(STEPS):
            population, _ = many.train(population, all_rows, keys)
        jax.block_until_ready(population)
        times[0].append((between - began) / STEPS / MEMBERS)
        times[1].append((time.perf_counter() - between) / STEPS)
    one, whole = (float(np.median(part)) for part in times)
    row = {"layers": layers, "width": width, "head": "finetune" if finetune else "pretrain", "dtype": dtype}
    row |= {"compile_single_s": compile_single, "compile_population_s": compile_many}
    row |= {"step_single_ms": 1e3 * one, "step_population_ms": 1e3 * whole, "ratio_step": MEMBERS * one / whole}
    for steps in (500, 2000, 10000):
        in_turn = compile_single + MEMBERS * steps * one
        row[f"ratio_{steps}_steps_with_compile"] = in_turn / (compile_many + steps * whole)
    return row


if __name__ == "__main__":
    shapes = [(2, 128), (4, 256)]
    rows = [measured(*s, f, d) for s in shapes for f in (False, True) for d in ("bfloat16", "float32")]
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "populations": rows}, indent=1))
