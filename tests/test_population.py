"""A population is its members: each equals the single run with the same data, keys, learning rate and sparsity."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.config import MeshConfig, ModelConfig, OptimizerConfig, PruneConfig
from jaxprune.models.bert import bert
from jaxprune.models.losses import pretraining_loss
from jaxprune.pruning import init_masks, leaf_counts
from jaxprune.training.compile import compile_steps
from jaxprune.training.optimizer import adamw, with_peak_rate
from jaxprune.training.population import MemberBatches, compile_population, member, stack
from jaxprune.training.sharding import make_mesh

MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=8,
)
RATES, SPARSITIES, SEEDS = (3e-3, 1e-3, 2e-3, 3e-3), (0.3, 0.9, 0.0, 0.71), (0, 1, 2, 2)
BATCH, STEPS, PRUNES = 8, 6, (0, 2, 5)
INCLUDE = ("embeddings/word_embeddings/embedding", r"encoder/layer_\d+/attention/(query|output)/kernel")
"""Few matrices, since each takes long to compile."""


class Batches:
    """Random examples by seed and step."""

    def __init__(self, seed):
        self.seed, self.step = seed, 0

    def __next__(self):
        rng = np.random.default_rng((self.seed, self.step))
        self.step += 1
        shapes = {"input_ids": (BATCH, 8), "token_type_ids": (BATCH, 8), "masked_positions": (BATCH, 3)}
        shapes |= {"masked_ids": (BATCH, 3), "next_sentence_label": (BATCH,)}
        tops = {"input_ids": 64, "token_type_ids": 2, "masked_positions": 8, "masked_ids": 64, "next_sentence_label": 2}
        batch = {name: rng.integers(0, tops[name], shape).astype(np.int32) for name, shape in shapes.items()}
        batch["attention_mask"] = np.ones((BATCH, 8), np.int32)
        return batch | {"masked_weights": np.ones((BATCH, 3), np.float32)}

    def get_state(self):
        return {"next_index": self.step}

    def set_state(self, state):
        self.step = state["next_index"]


@pytest.fixture(autouse=True)
def quick():
    """Programs compiled quickly: that is most of these tests' time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def steps_of(compiler, params, masks, mesh, mode, **how):
    return compiler(
        params,
        masks,
        mesh,
        loss_fn=pretraining_loss(bert(MODEL, head="pretraining").apply),
        tx=adamw(OptimizerConfig(warmup_steps=2), STEPS),
        prune=PruneConfig(mode=mode, scope="head"),
        num_heads=MODEL.num_attention_heads,
        **how,
    )


@cache
def start(seed):
    params = jax.device_get(jax.jit(bert(MODEL, head="pretraining").init)(jax.random.key(seed)))
    return params, jax.device_get(init_masks(params, INCLUDE))


@cache
def singles(mode):
    """(state, losses) of each run by itself, on one device."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = steps_of(compile_steps, *start(0), mesh, mode)
    ends = []
    for rate, sparsity, seed in zip(RATES, SPARSITIES, SEEDS, strict=True):
        state, batches, key = program.init(*start(seed)), Batches(seed), jax.random.key(seed)
        state = state._replace(opt_state=with_peak_rate(state.opt_state, rate))
        losses = []
        for step in range(STEPS):
            if step in PRUNES:
                state = program.prune(state, np.float32(sparsity), key)
            state, metrics = program.train(state, program.put(next(batches)), key)
            losses.append(float(metrics["mlm"][0] / metrics["mlm"][1]))
        ends.append((jax.device_get(state), losses))
    return ends


def population(mode, cfg, batched):
    """(states, losses (steps, M)) of all of them together, on a mesh."""
    params, masks = (stack(parts) for parts in zip(*map(start, SEEDS), strict=True))
    program = steps_of(compile_population, params, masks, make_mesh(cfg), mode, batched=batched)
    states = program.init(params, masks)
    states = states._replace(opt_state=with_peak_rate(states.opt_state, jnp.array(RATES)))
    keys, batches = jax.vmap(jax.random.key)(jnp.array(SEEDS)), MemberBatches([Batches(seed) for seed in SEEDS])
    losses = []
    for step in range(STEPS):
        if step in PRUNES:
            states = program.prune(states, np.array(SPARSITIES, np.float32), keys)
        states, metrics = jax.block_until_ready(program.train(states, program.put_whole(next(batches)), keys))
        losses.append(np.asarray(metrics["mlm"][0] / metrics["mlm"][1]))
    return jax.device_get(states), np.array(losses)


MESHES = {
    "batched, one axis for members": ("hard", MeshConfig(data=2, member=4), True),
    "batched, members on members and fsdp": ("soft", MeshConfig(data=2, fsdp=2, member=2), True),
    "in turn, members on members and fsdp": ("hard", MeshConfig(data=2, fsdp=2, member=2), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MESHES)
def test_every_member_is_the_single_run(case):
    mode, cfg, batched = MESHES[case]
    states, losses = population(mode, cfg, batched)
    for i, (alone, alone_losses) in enumerate(singles(mode)):
        np.testing.assert_allclose(losses[:, i], alone_losses, rtol=1e-4)
        together = member(states, i)
        jax.tree.map(np.testing.assert_array_equal, together.masks, alone.masks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), together.params, alone.params)
        kept, size = (sum(pair[j] for pair in leaf_counts(together.masks).values()) for j in (0, 1))
        assert 1 - kept / size == pytest.approx(SPARSITIES[i], abs=0.01)


def test_the_data_position_of_every_member_is_saved():
    batches = MemberBatches([Batches(0), Batches(1)])
    next(batches)
    saved, expected = batches.get_state(), next(batches)
    again = MemberBatches([Batches(0), Batches(1)])
    again.set_state(saved)
    jax.tree.map(np.testing.assert_array_equal, next(again), expected)
    assert expected["input_ids"].shape == (2, BATCH, 8)


def test_members_that_do_not_split_over_the_mesh_are_refused():
    params, masks = (stack(parts) for parts in zip(*map(start, (0, 1, 2)), strict=True))
    with pytest.raises(ValueError, match="3 members do not split over mesh.member = 2"):
        steps_of(compile_population, params, masks, make_mesh(MeshConfig(data=4, member=2)), "hard")
