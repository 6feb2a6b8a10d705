"""Encoded examples, and batches of rows that hold several: none is lost or doubled, all batches have one shape."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_glue import BERT, examples, word_level
from tokenizers.processors import BertProcessing, RobertaProcessing

from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data.examples import Examples, subset
from jaxprune.data.glue_examples import load
from jaxprune.data.metrics import score
from jaxprune.data.permutation import shuffled
from jaxprune.data.row_packing import Shape, pack, shape_of
from jaxprune.data.task_batches import Batch, Encoded, TaskData, encode, eval_batches, longest_first, outputs
from jaxprune.data.tasks import TASKS
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.data.tokenizer import load as load_vocabulary
from jaxprune.errors import UserError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(word_level(), BERT, "made up")


def texts(encoded: Encoded) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.ids, encoded.ends[:-1])]


def numbered(vocabulary: Vocabulary, lengths: list[int], **options: Any) -> Encoded:
    """Examples of so many words, whose labels are their numbers."""
    return encode(examples(lengths, labels=[*range(len(lengths))]), vocabulary, 64, **options)


def drawn(vocabulary: Vocabulary, count: int, seed: int = 0) -> Encoded:
    """Short texts and a few long ones, as in SST-2."""
    rng = np.random.default_rng(seed)
    return numbered(vocabulary, np.minimum(1 + rng.geometric(0.12, count), 40).tolist())


def labels_of(batch: Batch) -> list[int]:
    return batch["labels"][batch["example_weights"] > 0].tolist()


# --- rows -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 60), st.integers(1, 9))
def test_rows_hold_each_index_once_within_their_bounds(lengths, more, slots):
    """And by first fit: the longest example of a row had no place in any row before it."""
    length = max(lengths) + more
    rows = pack(lengths, length, slots)
    assert sorted(index for row in rows for index in row) == [*range(len(lengths))]
    assert all(0 < len(row) <= slots and sum(lengths[i] for i in row) <= length for row in rows)
    for later, row in enumerate(rows):
        for before in rows[:later]:
            assert len(before) == slots or sum(lengths[i] for i in before) + lengths[row[0]] > length
    assert pack(lengths, length, slots) == rows


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=20), min_size=1, max_size=4),
    st.integers(0, 9),
    st.integers(1, 8),
)
def test_the_shape_is_the_smallest_into_which_all_batches_pack(batches, more, multiple):
    arrays = [np.array(batch) for batch in batches]
    longest = max(map(max, batches)) + more
    rows, length, slots = shape_of(arrays, longest, multiple)
    assert rows % multiple == 0 and length % 16 == 0 and length >= longest
    assert all(len(pack(batch, length, slots)) <= rows for batch in batches)
    for n in range(1, 4 * -(-longest // 16) + 1):
        if 16 * n >= longest:
            needed = max(len(pack(batch, 16 * n, 16 * n)) for batch in batches)
            assert rows * length <= -(-needed // multiple) * multiple * 16 * n


# --- examples -------------------------------------------------------------------------------------------------------


def test_encode_single_pair_and_apart(vocabulary):
    one = encode(examples([2, 4]), vocabulary, 128)
    assert texts(one) == [[2, 4, 5, 3], [2, 4, 5, 6, 7, 3]] and not one.types.any() and one.pad == 0
    assert one.lengths.tolist() == [4, 6] and one.texts == 1
    two = encode(examples([2, 1], [1, 0]), vocabulary, 128)
    assert texts(two) == [[2, 4, 5, 3, 54, 3], [2, 4, 3, 3]]
    assert two.types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    apart = encode(examples([2, 1], [1, 0]), vocabulary, 128, apart=True)
    assert texts(apart) == [[2, 4, 5, 3], [2, 54, 3], [2, 4, 3], [2, 3]] and not apart.types.any()
    assert (apart.texts, apart.lengths.tolist(), len(apart)) == (2, [7, 5], 2)
    assert all(array.dtype == np.int32 for array in (one.ids, one.types, two.ids, two.types))
    assert texts(encode(examples([30]), vocabulary, 10)) == [[2, *range(4, 12), 3]]
    assert texts(encode(examples([30], [31]), vocabulary, 6, apart=True)) == [
        [2, *range(4, 8), 3],
        [2, *range(54, 58), 3],
    ]


TEMPLATES = {1: BertProcessing, 2: RobertaProcessing}


@pytest.mark.parametrize("separators", TEMPLATES)
def test_pairs_are_cut_as_tokenizers_cuts_them(separators):
    """`longest_first` for all lengths and rooms; what the tokenizer was set to before is not asked."""
    ours, theirs = word_level(), word_level()
    for tokenizer in (ours, theirs):
        tokenizer.post_processor = TEMPLATES[separators](("[SEP]", 3), ("[CLS]", 2))  # pyright: ignore
    ours.enable_truncation(3)
    ours.enable_padding(length=7)
    vocabulary = Vocabulary(ours, BERT, "made up")
    lengths = [(a, b) for a in range(13) for b in range(13)]
    made = examples([a for a, _ in lengths], [b for _, b in lengths])
    pairs = [*zip(made.first, made.second or ())]
    for room in range(2, 15):
        encoded = encode(made, vocabulary, room + 2 + separators)
        theirs.enable_truncation(room + 2 + separators, strategy="longest_first")
        expected = theirs.encode_batch(pairs)
        assert texts(encoded) == [one.ids for one in expected]
        kept = [[one.sequence_ids.count(i) for i in (0, 1)] for one in expected]
        assert [[*longest_first(a, b, room)] for a, b in lengths] == kept
        assert encoded.types.tolist() == [number for one in expected for number in one.type_ids]


@pytest.mark.data
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("name", ["RTE", "STS-B"])
def test_real_pairs_are_cut_as_transformers_cuts_them(real_data, tmp_path, name, family):
    """RoBERTa's byte-level pieces are learned from the pairs, since its own are not at hand."""
    import transformers

    made = subset(load(name, str(real_data / "glue"), "dev"), 250, 0)
    assert made.second is not None
    if family == "bert":
        folder, special = real_data / "vocab", BERT
    else:
        folder, special = tmp_path, SpecialTokens("<pad>", "<unk>", "<s>", "</s>", "<mask>")
        bpe = tokenizers.ByteLevelBPETokenizer()
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bpe.train_from_iterator([*made.first], vocab_size=2000, special_tokens=names, show_progress=False)
        bpe.save_model(str(tmp_path))
        (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = load_vocabulary(str(folder), special=special)
    assert vocabulary.separators == (1 if family == "bert" else 2)
    for max_len in (64, 33, 16):
        expected = theirs(
            list(made.first), list(made.second), truncation="longest_first", max_length=max_len, verbose=False
        )
        ours = encode(made, vocabulary, max_len)
        assert texts(ours) == expected["input_ids"]
    assert (ours.lengths == 16).mean() > 0.9
    if family == "bert":
        assert ours.types.tolist() == [number for row in expected["token_type_ids"] for number in row]


def test_encode_bad_input(vocabulary):
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match=r"made up: its 2 tokens lack \[PAD\], \[SEP\], \[MASK\]"):
        Vocabulary(bare, BERT, "made up")
    with pytest.raises(UserError, match="max_len = 4 leaves no room"):
        encode(examples([1], [1]), vocabulary, 4)
    with pytest.raises(UserError, match="made up: no examples"):
        encode(examples([]), vocabulary, 16)


# --- batches --------------------------------------------------------------------------------------------------------


def assert_holds(batch: Batch, encoded: Encoded, shape: Shape) -> list[int]:
    """That every slot holds one example's ids, types, positions and label; their numbers, which are the labels too."""
    own, ends, U = texts(encoded), encoded.ends, shape.slots
    for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids"):
        assert batch[name].shape == (shape.rows, shape.length) and batch[name].dtype == np.int32
    assert batch["starts"].shape == (shape.rows, U * encoded.texts)
    assert batch["labels"].shape == batch["example_weights"].shape == (shape.rows, U)
    seen, cells = [], 0
    for row in range(shape.rows):
        for slot in np.flatnonzero(batch["example_weights"][row]):
            number = int(batch["labels"][row, slot])
            seen.append(number)
            for part in range(encoded.texts):
                text, segment = encoded.texts * number + part, encoded.texts * slot + part
                at = batch["segment_ids"][row] == segment + 1
                cells += at.sum()
                assert batch["input_ids"][row, at].tolist() == own[text]
                assert batch["position_ids"][row, at].tolist() == [*range(len(own[text]))]
                begin = ends[text] - len(own[text])
                assert batch["token_type_ids"][row, at].tolist() == encoded.types[begin : ends[text]].tolist()
                assert batch["starts"][row, segment] == np.flatnonzero(at)[0]
                assert np.diff(np.flatnonzero(at)).tolist() == [1] * (at.sum() - 1)
    empty = batch["segment_ids"] == 0
    assert (~empty).sum() == cells
    assert (batch["input_ids"][empty] == encoded.pad).all() and not batch["position_ids"][empty].any()
    return seen


@pytest.mark.parametrize(("count", "batch_size", "multiple"), [(23, 5, 1), (64, 16, 8), (7, 16, 1), (30, 1, 2)])
def test_each_example_once_per_epoch(vocabulary, count, batch_size, multiple):
    encoded = drawn(vocabulary, count)
    data = TaskData(encoded, batch_size, 7, epochs=3, multiple=multiple)
    per_epoch = data.steps_per_epoch
    assert per_epoch == -(-count // batch_size) and data.shape.rows % multiple == 0
    epochs = [
        [assert_holds(data.batch(epoch * per_epoch + i), encoded, data.shape) for i in range(per_epoch)]
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert sorted(number for batch in epoch for number in batch) == [*range(count)]
        assert [len(batch) for batch in epoch[:-1]] == [batch_size] * (per_epoch - 1)
    if count > batch_size:
        assert epochs[0] != epochs[1] != epochs[2]


def test_pairs_to_compare_lie_side_by_side(vocabulary):
    encoded = encode(examples([*range(1, 20)], [*range(19, 0, -1)], labels=[*range(19)]), vocabulary, 64, apart=True)
    data = TaskData(encoded, 6, 0)
    seen = [number for step in range(4) for number in assert_holds(data.batch(step), encoded, data.shape)]
    assert sorted(seen) == [*range(19)]


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_has_one_example_of_each_class_of_length(vocabulary, seed):
    """So that all have about as many tokens; which ones is drawn anew in every epoch."""
    encoded = drawn(vocabulary, 250, seed)
    data = TaskData(encoded, 8, seed, epochs=2)
    for epoch in range(2):
        batches = [labels_of(data.batch(epoch * 32 + i)) for i in range(31)]
        sets = [{*batch} for batch in batches]
        lengths = np.sort([encoded.lengths[sorted(batch)] for batch in batches])
        classes = np.sort(lengths.reshape(-1)).reshape(8, 31)
        np.testing.assert_array_equal(np.sort(lengths, 0), classes.T)
        assert lengths.sum(1).std() < lengths.sum(1).mean() / 8  # drawn freely it would be about 1 / 4
    assert {*map(frozenset, sets)}.isdisjoint({frozenset(labels_of(data.batch(i))) for i in range(31)})


def test_batches_are_a_function_of_seed_and_step(vocabulary):
    encoded = drawn(vocabulary, 40)
    one, other, another = (TaskData(encoded, 6, seed, epochs=2) for seed in (3, 3, 4))
    for step in (9, 0, 5, 13):  # in any order
        a, b = one.batch(step), other.batch(step)
        assert {*a} == {*b} and all((a[name] == b[name]).all() for name in a)
    assert [labels_of(one.batch(i)) for i in range(7)] != [labels_of(another.batch(i)) for i in range(7)]
    wider = TaskData(encoded, 6, 3, epochs=2, multiple=8, longest=64)  # another mesh, a longer dev set
    assert wider.shape != one.shape
    for step in range(14):
        assert sorted(labels_of(wider.batch(step))) == sorted(labels_of(one.batch(step)))


def test_order_is_pinned():
    assert shuffled(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert sorted(shuffled(1000, 3, 4)) == list(range(1000))


def test_iterator_resumes(vocabulary):
    data = TaskData(numbered(vocabulary, [3] * 7), 2, 0)
    run = iter(data)
    labels = [labels_of(next(run)) for _ in range(6)]
    state = run.get_state()
    assert state == {"next_index": 6}
    expected = [labels_of(next(run)) for _ in range(4)]
    other = iter(TaskData(data.encoded, 2, 0))
    other.set_state(state)
    assert [labels_of(next(other)) for _ in range(4)] == expected
    other.set_state({"next_index": 0})
    assert labels_of(next(other)) == labels[0]
    wrong: Any
    for wrong in ({}, {"next_index": -1}, {"next_index": "3"}):
        with pytest.raises(UserError, match="is not of the form"):
            other.set_state(wrong)
    with pytest.raises(UserError, match="batch_size = 0"):
        TaskData(data.encoded, 0, 0)


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 63, 511, 512, 513, 1030])
@pytest.mark.parametrize("shape", [Shape(1, 64, 2), Shape(4, 64, 64), Shape(8, 112, 5)])
def test_evaluation_visits_each_example_once(vocabulary, count, shape):
    encoded = drawn(vocabulary, count)
    seen = []
    for numbers, batch in eval_batches(encoded, shape):
        assert {name: array.shape[0] for name, array in batch.items()} == dict.fromkeys(batch, shape.rows)
        assert batch["input_ids"].shape[1] == shape.length and numbers.shape == (shape.rows, shape.slots)
        np.testing.assert_array_equal(numbers >= 0, batch["example_weights"] == 1)
        np.testing.assert_array_equal(numbers[numbers >= 0], batch["labels"][numbers >= 0])
        seen += numbers[numbers >= 0].tolist()
    assert sorted(seen) == [*range(count)]


@pytest.mark.parametrize("shape", [Shape(1, 48, 1), Shape(3, 48, 6), Shape(4, 96, 50)])
def test_packed_evaluation_equals_the_plain_one(vocabulary, shape):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 23)
    encoded = encode(examples(rng.integers(1, 30, 23).tolist(), labels=labels.tolist()), vocabulary, 32)

    def model(batch: Batch) -> np.ndarray:
        sums = [
            [np.sum(ids[own == slot + 1]) for slot in range(shape.slots)]
            for ids, own in zip(batch["input_ids"], batch["segment_ids"])
        ]
        odd = np.array(sums) % 3 == 0
        return np.stack([~odd, odd], axis=-1).astype(np.float32)

    odd = np.array([sum(text) % 3 == 0 for text in texts(encoded)])
    predictions = outputs(encoded, shape, model)
    np.testing.assert_array_equal(predictions, np.stack([~odd, odd], 1))
    assert score("CoLA", predictions, labels)["accuracy"] == (odd == labels).mean()


def test_class_weights_count_in_training_alone(vocabulary):
    task = TASKS["CoLA"].__class__(**{**vars(TASKS["CoLA"]), "class_weights": (1.0, 3.0)})
    made = Examples(task, "made up", ["w1", "w2 w3", "w4"], None, np.array([0, 1, 1], np.int32))
    encoded = encode(made, vocabulary, 16)
    data = TaskData(encoded, 3, 0)
    (batch,) = (data.batch(0),)
    real = batch["example_weights"] > 0
    np.testing.assert_array_equal(batch["example_weights"][real], np.array([1, 3])[batch["labels"][real]])
    (evaluated,) = eval_batches(encoded, data.shape)
    assert evaluated[1]["example_weights"].sum() == 3


@pytest.mark.slow
def test_workers_never_import_jax():
    code = "import sys, jaxprune.data.task_batches, jaxprune.data.metrics"
    code += "; heavy = {'jax', 'datasets', 'sklearn', 'scipy'}"
    code += "; assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
