"""The parts of a plan that need no TPU compiler: names, HLO text, counts, bounds."""

import importlib.util
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.cli import EXIT_USER, main
from jaxprune.config import MeshConfig, ModelConfig
from jaxprune.models import architecture_named
from jaxprune.plan.bisection import largest
from jaxprune.plan.chips import CHIPS
from jaxprune.plan.collectives import collectives, sorts
from jaxprune.plan.hbm_traffic import hbm_bytes
from jaxprune.plan.hlo import parse
from jaxprune.plan.matmuls import products
from jaxprune.plan.memory import memory_parts
from jaxprune.plan.roofline import Roofline, recipe, roofline
from jaxprune.plan.slices import NAMES, find
from jaxprune.pruning import pruner
from jaxprune.training.compile import compile_steps
from jaxprune.training.sharding import batch_sharding, make_mesh

HLO = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (p0: f32[64]) -> f32[16] {
  %p0 = f32[64]{0} parameter(0)
  %all-reduce.9 = f32[64]{0} all-reduce(%p0), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %mine = f32[16]{0} slice(%all-reduce.9), slice={[0:16]}
}

%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {
  %state = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[10]{0} get-tuple-element(%state), index=1
  %permuted = f32[10]{0} collective-permute(%v), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %next = (s32[], f32[10]{0}) tuple(%i, %permuted)
}

%search (state.1: (s32[], f32[10])) -> (s32[], f32[10]) {
  %state.1 = (s32[], f32[10]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %v.1 = f32[10]{0} get-tuple-element(%state.1), index=1
  %counted = f32[10]{0} all-reduce(%v.1), replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %next.1 = (s32[], f32[10]{0}) tuple(%i.1, %counted)
}

%always (state.2: (s32[], f32[10])) -> pred[] {
  %state.2 = (s32[], f32[10]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%never_called (q: f32[999]) -> f32[999] {
  %q = f32[999]{0} parameter(0)
  ROOT %lost = f32[999]{0} all-reduce(%q), replica_groups={}, to_apply=%add
}

ENTRY %main (a: bf16[8,100], b: f32[10], c: f32[64]) -> f32[10] {
  %a = bf16[8,100]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[10]{0} parameter(1)
  %c = f32[64]{0} parameter(2)
  %wide = f32[8,100]{1,0:T(8,128)S(1)} convert(%a)
  %narrowed = bf16[8,100]{1,0:T(8,128)(2,1)} all-reduce(%wide), replica_groups=mesh['a'=2,'b'=2] {'b'}, to_apply=%add
  %two = (f32[10]{0}, /*index=1*/f32[64]{0}) all-reduce-start(%b, %c), replica_groups={}, to_apply=%add
  %done = (f32[10]{0}, f32[64]{0}) all-reduce-done(%two)
  %gather = (f32[10]{0}, f32[40]{0}) all-gather-start(%b), replica_groups={{0,1,2,3}}, dimensions={0}
  %gathered = f32[40]{0} all-gather-done(%gather)
  %kept = f32[16]{0} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.1
  %alone = f32[10]{0} all-reduce(%b), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %zero = s32[] constant(0)
  %init = (s32[], f32[10]{0}) tuple(%zero, %b)
  %known = (s32[], f32[10]{0}) while(%init), condition=%always, body=%body, config={"known_trip_count":{"n":"5"}}
  %unknown = (s32[], f32[10]{0}) while(%known), condition=%always, body=%search
  %sorted = (s32[4096]{0}, s32[4096]{0}) sort(%zero, %zero), dimensions={0}, to_apply=%add
  ROOT %out = f32[10]{0} get-tuple-element(%unknown), index=1
}
"""


def test_collectives_of_a_hand_written_module():
    module = parse(HLO)
    crossing = {(c.kind, c.bytes, c.group, c.count, c.per_pass) for c in collectives(module, chips=4)}
    assert crossing == {
        ("all-reduce", 8 * 100 * 2, 2, 1, False),  # crosses as the bf16 that it makes, in groups along one mesh axis
        ("all-reduce", (10 + 64) * 4, 4, 1, False),  # an async pair counts once, with both arrays
        ("all-gather", 40 * 4, 4, 1, False),
        ("reduce-scatter", 64 * 4, 4, 1, False),
        ("collective-permute", 40, 4, 5, False),  # five trips
        ("all-reduce", 40, 2, 1, True),  # once per pass
    }
    assert sorts(module) == [(4096, 1)]


def test_bytes_on_the_wire():
    by_kind = {(c.kind, c.bytes): c for c in collectives(parse(HLO), chips=4)}
    assert by_kind["all-reduce", 296].wire == 2 * 3 / 4 * 296
    assert by_kind["all-gather", 160].wire == 3 / 4 * 160
    assert by_kind["reduce-scatter", 256].wire == 3 / 4 * 256
    assert by_kind["collective-permute", 40].wire == 40


def test_traffic_of_a_hand_written_module():
    text = """\
ENTRY %main (a: f32[100], b: f32[50]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %b = f32[50]{0} parameter(1)
  %here = f32[100]{0:T(128)S(1)} negate(%a)
  %copy-start = (f32[50]{0:S(1)}, f32[50]{0}, u32[]) copy-start(%b)
  %copy-done = f32[50]{0:S(1)} copy-done(%copy-start)
  %slice-start = ((f32[100]{0}), f32[8]{0:S(1)}, s32[]) slice-start(%a), slice={[0:8]}
  ROOT %back = f32[100]{0} add(%here, %here)
}
"""
    assert hbm_bytes(parse(text)) == (400 + 200 + 32 + 400, 0)


def compiled_text(function, *shapes, mesh_axes=(), specs=None):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    shardings = None if specs is None else tuple(NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    jitted = jax.jit(function) if shardings is None else jax.jit(function, in_shardings=shardings)
    return jitted.lower(*arguments).compile().as_text()


def test_the_all_reduce_of_a_compiled_sum():
    text = compiled_text(lambda x: x.sum(0), (8, 1000), specs=[("x",)])
    (crossing,) = collectives(parse(text), chips=8)
    assert (crossing.kind, crossing.bytes, crossing.group, crossing.count) == ("all-reduce", 4000, 4, 1)


def test_a_loop_multiplies_by_its_trips():
    def looped(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

    made = products(parse(compiled_text(looped, (16, 32), (32, 32))))
    assert sum(p.flops for p in made) == 7 * 2 * 16 * 32 * 32
    assert all(p.float32 and p.passes == 1 for p in made)


@pytest.mark.parametrize("seed", range(5))
def test_convolutions_count_real_elements_only(seed):
    rng = np.random.default_rng(seed)
    n, out, size, stride, lhs, rhs = (int(rng.integers(1, high)) for high in (9, 7, 5, 4, 4, 3))
    low = int(rng.integers(0, 3))
    window = f"size={size} stride={stride} pad={low}_0 lhs_dilate={lhs} rhs_dilate={rhs}"
    how = f"window={{{window}}}, dim_labels=b0f_0io->b0f, operand_precision={{highest,highest}}"
    text = f"""\
ENTRY %main (a: f32[3,{n},5], k: f32[{size},5,7]) -> f32[3,{out},7] {{
  %a = f32[3,{n},5]{{2,1,0}} parameter(0)
  %k = f32[{size},5,7]{{2,1,0}} parameter(1)
  ROOT %c = f32[3,{out},7]{{2,1,0}} convolution(%a, %k), {how}
}}
"""
    real = {i * lhs for i in range(n)}
    hits = sum((o * stride - low + k * rhs) in real for o in range(out) for k in range(size))
    (made,) = products(parse(text))
    assert (made.flops, made.passes) == (2 * 3 * 5 * 7 * hits, 6)


def test_train_flops_are_those_of_the_compiled_products():
    """Six FLOPs per weight and token for the layers' matrices, and the head's; checked by hand for a 1-layer model."""
    cfg = ModelConfig(vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    tokens, predictions = 16, 3
    layer = tokens * (4 * 8 * 8 + 2 * 8 * 32) + 2 * tokens * tokens * 8
    heads = predictions * (8 * 8 + 8 * 100) + 8 * 8 + 8 * 2
    count = architecture_named("bert").train_flops
    assert count(cfg, seq_len=tokens, predictions=predictions) == 6 * (layer + heads)


@pytest.mark.parametrize(("criterion", "remembered"), [("magnitude", 0), ("movement", 4 * (64 * 32) // 8)])
def test_memory_by_part_adds_up(criterion, remembered):
    """Of one of 8 devices: float32 params and two moments, a byte per mask, what the criterion remembers."""
    params = {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.float32), "bias": jax.ShapeDtypeStruct((32,), jnp.float32)}
    masks = {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.bool_), "bias": None}
    tx = optax.adam(1e-3)
    mesh = make_mesh(MeshConfig(fsdp=8))
    steps = compile_steps(params, masks, mesh, loss_fn=lambda *_: ({}, {}), tx=tx, pruner=pruner(criterion))
    analysis = SimpleNamespace(
        argument_size_in_bytes=10_000,
        temp_size_in_bytes=500,
        output_size_in_bytes=300,
        alias_size_in_bytes=100,
        generated_code_size_in_bytes=7,
    )
    batch = {"x": jax.ShapeDtypeStruct((16, 4), jnp.int32, sharding=batch_sharding(mesh))}
    parts = memory_parts(steps.abstract, steps.frozen, batch, analysis)
    weights = 64 * 32 // 8 + 32
    given = {"params": 4 * weights, "masks": 64 * 32 // 8, "optimizer": 8 * weights + 4, "criterion": remembered}
    given["batch"] = 2 * 4 * 4
    assert {name: parts[name] for name in given} == given
    assert parts["layout_padding"] == 10_000 - sum(given.values())
    assert parts["total"] == 10_000 + 500 + 200 + 7


def test_names_count_chips_or_cores():
    chips = {name: find(name).chips for name in NAMES}
    for name, count in chips.items():
        kind, number = name.split("-")
        assert count * CHIPS[kind].cores == int(number)
    assert find("v5p-64").topology == "v5p:2x4x4" and find("v5e:16x16").chips == 256


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("v5e-8", 100e9),  # 2 x 4, a line each way: a corner has 2 of 4 links
        ("v5e-256", 200e9),  # 16 x 16 closes to rings
        ("v5p-64", 300e9),  # 2 x 4 x 4 is less than a cube: 3 of 6 links
        ("v5p-128", 600e9),
        ("v6e-16", 200e9),
        ("v5e:1x4", 50e9),
    ],
)
def test_links_of_a_corner(name, rate):
    assert find(name).ici_rate == pytest.approx(rate)


def test_bounds_by_hand():
    chip = CHIPS["v5e"]
    bound = roofline(chip, 100e9, flops=197e9, hbm_bytes=819e6 * 3, wire_bytes=2e8)
    assert bound == pytest.approx((1e-3, 3e-3, 2e-3))
    assert (bound.bound_by, bound.seconds) == ("hbm", pytest.approx(3e-3))
    kwargs = {"steps": 3600, "tokens_per_step": 1000, "chip": chip, "chips": 8, "prunes": 360}
    got = recipe(Roofline(1.0, 0.5, 0.1), Roofline(0, 10.0, 0), useful_flops=197e12 / 2, price=1.5, **kwargs)
    assert got["hours"] == pytest.approx(2.0) and got["chip_hours"] == pytest.approx(16.0)
    assert got["cost_usd"] == pytest.approx(24.0)
    assert got["tokens_per_second"] == 1000 and got["mfu_bound"] == pytest.approx(0.5)
    assert recipe(Roofline(1, 0, 0), None, useful_flops=1.0, price=None, **kwargs)["cost_usd"] is None


@pytest.mark.parametrize("most", [0, 1, 2, 7, 16, 31, 100, 1000])
@pytest.mark.parametrize("start", [1, 5, 32])
def test_largest_finds_the_edge(most, start):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= most

    size = largest(fits, start)
    assert size <= most and most - size <= most // 16
    assert len(tried) <= 4 + 2 * math.log2(max(most, start, 1) * 2) and len(set(tried)) == len(tried)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("command: pretrain\nsteps: 4\nbatch_size: 8\n")
    return str(path)


@pytest.mark.parametrize(
    ("argv", "say"),
    [
        (["--topology", "v5e-9"], ["v5e-9", "did you mean v5e-8?", "v5p-64"]),
        (["--topology", "v5e:4x4x4"], ["v5e:4x4x4", "unknown slice"]),
        (["--topology", "v5p:4x4"], ["v5p:4x4", "unknown slice"]),
        (["--topology", "v5e-8", "--price", "-1"], ["--price -1.0", "USD"]),
        (["--topology", "v5e-8", "--seq-len", "513"], ["513", "model.max_position_embeddings = 512"]),
        (["--topology", "v5e-8", "--seq-len", "2"], ["--seq-len 2"]),
        (["--topology", "v5e-8", "--stepz", "2"], ["stepz", "did you mean steps?"]),
        ([], ["--topology"]),
    ],
)
def test_wrong_input_is_one_line(argv, say, config, capsys):
    assert main(["plan", config, *argv]) == EXIT_USER
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(words in err for words in say), err


def test_a_missing_compiler_is_one_line(config, monkeypatch, capsys):
    real = importlib.util.find_spec

    def hidden(name, *rest):
        return None if name == "libtpu" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert main(["plan", config, "--topology", "v5e-8"]) == EXIT_USER
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'jaxprune[tpu]'" in err, err
