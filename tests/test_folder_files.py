"""What lies beside the weights of a model folder goes where they go: prune, pre-training, and what a disk may do."""

import json
import resource
import shutil
import signal

import numpy as np
import pandas
import pytest
from own_tasks import write_config, write_encoder, write_tasks
from safetensors.numpy import load_file, save_file
from tiny_folders import (
    bits,
    content,
    contents,
    drawn_masks,
    encoder_output,
    tiny_model,
    torch,
    transformers,
    umask,
    write_files,
)

from jaxprune.cli import main
from jaxprune.config import FinetuneConfig, PretrainConfig
from jaxprune.config.encoder_part import encoder_part
from jaxprune.config.load import to_yaml
from jaxprune.data import tokenizer
from jaxprune.experiments.weights import folder_beside
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_folder, write_folder, write_masked

pytestmark = pytest.mark.parity

# --- other files ----------------------------------------------------------------------------------------------------

MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")])
]
MODULES += [{"idx": 3, "name": "3", "path": "norm", "type": "sentence_transformers.models.Normalize"}]
OTHER_FILES = {
    "modules.json": json.dumps(MODULES),
    "1_Pooling/config.json": '{"word_embedding_dimension": 16, "pooling_mode_cls_token": true}',
    "2_Dense/config.json": "{}",
    "2_Dense/model.safetensors": "of a module that is not pruned",
    "norm/note.txt": "",
    "sentence_bert_config.json": '{"max_seq_length": 12, "do_lower_case": false}',
    "config_sentence_transformers.json": "{}",
    "README.md": "---\nlicense: mit\n---\n",
    "LICENSE": "MIT",
    "NOTICE.txt": "notice\r\n",
    ".gitattributes": "*.safetensors filter=lfs\n",
    "added_tokens.json": '{"[NEW]": 60}',
    "sentencepiece.bpe.model": "\x00\x01",
    "spiece.model": "\x02",
    "vocab.txt": "[PAD]\n[UNK]\n",
    "tokenizer_config.json": '{"do_lower_case":true,\n  "model_max_length": 12}',
    "special_tokens_map.json": "{}",
    "training_args.bin": "arguments",
    "assets/figure.svg": "<svg/>",
}
STALE = {
    "pytorch_model.bin": "dense",
    "tf_model.h5": "dense",
    "flax_model.msgpack": "dense",
    "rust_model.ot": "dense",
    "bert.ckpt.data-00000-of-00001": "dense",
    "model.fp16.safetensors": "dense",
    "model.safetensors.index.json": "{}",
    "onnx/model.onnx": "dense",
    "onnx/config.json": "{}",
    "openvino/openvino_model.xml": "dense",
    "openvino/openvino_model.bin": "dense",
    "checkpoint-500/model.safetensors": "dense",
    "checkpoint-500/trainer_state.json": "{}",
    ".git/HEAD": "",
    ".cache/huggingface/x.lock": "",
}


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    """A CLS-pooled sentence-transformers folder with all that may lie in one."""
    folder = tmp_path_factory.mktemp("encoder")
    tiny_model("BertModel").save_pretrained(folder)
    write_files(folder, OTHER_FILES | STALE)
    (folder / "4_Normalize").mkdir()
    (folder / "assets").chmod(0o700)
    return folder


def test_a_folder_pruned_at_sparsity_0_is_the_same_folder(sentence_encoder, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "out"
    assert main(["prune", str(sentence_encoder), str(out), "--sparsity", "0"]) == 0
    before, after = contents(sentence_encoder), contents(out)
    assert after.keys() == {*OTHER_FILES, "config.json", "model.safetensors", "masks.safetensors"}
    for name in {*OTHER_FILES, "config.json"}:
        assert after[name] == before[name], name
    assert (out / "4_Normalize").is_dir() and (out / "assets").stat().st_mode & 0o777 == 0o777 & ~umask()
    old, new = (load_file(folder / "model.safetensors") for folder in (sentence_encoder, out))
    assert {name: bits(array) for name, array in old.items()} == {name: bits(array) for name, array in new.items()}
    np.testing.assert_array_equal(encoder_output(sentence_encoder)[:, 0], encoder_output(out)[:, 0])
    (said,) = [line for line in caplog.messages if "left behind" in line]
    names = "bert.ckpt.data-00000-of-00001, checkpoint-500/, flax_model.msgpack, model.fp16.safetensors"
    assert names in said and "onnx/, openvino/, pytorch_model.bin" in said and ".git" not in said


def test_the_source_is_only_read(sentence_encoder, tmp_path):
    before = contents(sentence_encoder)
    write_masked(sentence_encoder, tmp_path / "out", drawn_masks(sentence_encoder))
    assert contents(sentence_encoder) == before


def test_a_target_inside_the_source(sentence_encoder, tmp_path):
    source = shutil.copytree(sentence_encoder, tmp_path / "source")
    for name in ("a", "assets/b"):
        write_masked(source, source / name, drawn_masks(source))
    assert contents(source / "a").keys() == contents(source / "assets" / "b").keys() | {"assets/figure.svg"}


@pytest.mark.real
def test_a_real_sentence_encoder_at_sparsity_0(minilm, tmp_path):
    source, out = minilm, tmp_path / "out"
    assert main(["prune", str(source), str(out), "--sparsity", "0"]) == 0
    before, after = contents(source), contents(out)
    assert before.keys() | {"masks.safetensors"} == after.keys() and len(before) > 10
    assert {name for name in before if before[name] != after[name]} <= {"model.safetensors"}
    old, new = (load_file(folder / "model.safetensors") for folder in (source, out))
    assert old.keys() == new.keys()
    for name, array in old.items():  # of two zeros, -0.0 becomes +0.0
        np.testing.assert_array_equal(array, new[name], err_msg=name)


@pytest.fixture(scope="module")
def old_layout(tmp_path_factory):
    """(today's folder, the same in the old layout), pooled by the first token and cut at 12 tokens."""
    new, old = (tmp_path_factory.mktemp(name) for name in ("new", "old"))
    write_encoder(new, pooling="cls")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 12}
    write_files(new, {"modules.json": json.dumps(modules), "tokenizer_config.json": json.dumps(settings)})
    write_files(new, {"sentence_bert_config.json": '{"max_seq_length": 12, "do_lower_case": false}'})
    (new / "masks.safetensors").unlink()
    shutil.copytree(new, old / "0_Transformer", ignore=shutil.ignore_patterns("1_*", "modules.json", "LICENSE"))
    shutil.copytree(new / "1_Pooling", old / "1_Pooling")
    modules[0]["path"] = "0_Transformer"
    write_files(
        old, {"modules.json": json.dumps(modules), "LICENSE": "free", "config.json": '{"__version__": "0.3.9"}'}
    )
    write_files(old, {"README.md": "# Theirs\n", "0_Transformer/pytorch_model.bin": "the same weights"})
    return new, old


def sentence_vectors(folder, texts=("hello there", "invoice " * 30, "wrong app")):
    """What sentence-transformers makes of texts, short and long."""
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu").encode([*texts])


def test_the_old_layout_of_sentence_encoders_stays_one(old_layout, tmp_path, caplog):
    new, old = old_layout
    np.testing.assert_array_equal(sentence_vectors(old), sentence_vectors(new))
    caplog.set_level("INFO", "jaxprune")
    for source, out in ((old, tmp_path / "old"), (new, tmp_path / "new")):
        assert main(["prune", str(source), str(out), "--sparsity", "0.6"]) == 0
    before, after = contents(old), contents(tmp_path / "old")
    added = {"0_Transformer/masks.safetensors"}
    assert after.keys() == (before.keys() | added) - {"0_Transformer/pytorch_model.bin"}
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == {"0_Transformer/model.safetensors"}
    for name in ("model.safetensors", "masks.safetensors"):
        assert after[f"0_Transformer/{name}"] == content(tmp_path / "new" / name)
    assert any("left behind: 0_Transformer/pytorch_model.bin" in line for line in caplog.messages)
    vectors = sentence_vectors(tmp_path / "old")
    np.testing.assert_array_equal(vectors, sentence_vectors(tmp_path / "new"))
    assert (vectors != sentence_vectors(old)).any()
    caplog.clear()
    assert main(["prune", str(tmp_path / "old"), str(tmp_path / "again"), "--sparsity", "0"]) == 0
    again = contents(tmp_path / "again")
    assert {name for name in after if again[name] != after[name]} <= added and again.keys() == after.keys()
    assert not any("brings no masks" in line for line in caplog.messages)


@pytest.mark.slow
def test_fine_tuning_from_the_old_layout(old_layout, tmp_path):
    """Its pooling counts, and what comes out lies in one folder, as today."""
    new, old = old_layout
    task = write_tasks(tmp_path / "data")["similarity"]
    models = []
    for source in (new, old):
        config = write_config(tmp_path / f"{source.name}.yaml", source, [task], epochs=1)
        assert main(["finetune", str(config), "--workdir", str(tmp_path / source.name)]) == 0
        models.append(tmp_path / source.name / "best" / "hf")
    a, b = map(contents, models)
    assert b.pop("SOURCE_README.md") == b"# Theirs\n"
    assert a.keys() == b.keys() and not any(name.startswith("0_") for name in b)
    assert {name for name in a if a[name] != b[name]} == {"README.md", "modules.json"}
    assert json.loads(a["modules.json"]) == json.loads(b["modules.json"])
    assert "vectors (cls of the last layer)" in b["README.md"].decode()
    np.testing.assert_array_equal(sentence_vectors(models[0]), sentence_vectors(models[1]))
    table = tmp_path / "pairs.csv"
    table.write_text("body,other\nhello there,thanks\nwrong app,late invoice\n")
    assert main(["predict", str(old), str(table), "--text", "body", "other", "--out", str(tmp_path / "out.csv")]) == 0
    pairs = pandas.read_csv(tmp_path / "out.csv")
    a, b = (sentence_vectors(old, [*pairs[name]]) for name in ("body", "other"))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(pairs["score"], cosines, atol=1e-5)


def test_modules_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    write_files(tmp_path, {"out/modules.json": '[{"path": ".."}]', "config.json": "{}", "out/a/config.json": "{}"})
    assert encoder_part(tmp_path / "out") == tmp_path / "out"
    write_files(tmp_path, {"out/modules.json": '[{"path": "a"}]'})
    assert encoder_part(tmp_path / "out") == tmp_path / "out" / "a"


def put_on_the_hub(folder, cache, name, monkeypatch):
    """`folder` in a hub's cache as huggingface_hub lays it out, read offline; its snapshot."""
    commit, repository = "0" * 40, cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return repository / "snapshots" / commit


def test_a_hub_model_brings_its_other_files(sentence_encoder, tmp_path, monkeypatch):
    snapshot = put_on_the_hub(sentence_encoder, tmp_path, "some/encoder", monkeypatch)
    write_masked("some/encoder", tmp_path / "out", drawn_masks(sentence_encoder))
    assert contents(tmp_path / "out").keys() == {
        *OTHER_FILES,
        *("config.json", "model.safetensors", "masks.safetensors"),
    }
    assert folder_beside("some/encoder") == snapshot


def test_a_hub_model_in_the_old_layout(old_layout, tmp_path, monkeypatch):
    new, old = old_layout
    put_on_the_hub(old, tmp_path / "cache", "some/old", monkeypatch)
    for source, out in ((str(old), "folder"), ("some/old", "hub")):
        assert main(["prune", source, str(tmp_path / out), "--sparsity", "0.6"]) == 0
    assert contents(tmp_path / "hub") == contents(tmp_path / "folder")
    special = architecture_named("bert").special_tokens
    here = tokenizer.load(str(new), special=special)
    for path in (str(old), "some/old"):
        assert tokenizer.load(path, special=special).pieces == here.pieces


# --- folders that a run writes --------------------------------------------------------------------------------------


def test_a_written_model_brings_the_other_files_of_its_source(sentence_encoder, tmp_path):
    read = read_folder(sentence_encoder, head="pretraining")
    arguments = {"head": "pretraining", "source": sentence_encoder}
    write_folder(tmp_path / "a", read.model, read.params, **arguments)
    write_folder(tmp_path / "b", read.model, read.params, **arguments, tokenizer={"vocab.txt": b"own"}, card="# Ours\n")
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    tokenizer = {"added_tokens.json", "sentencepiece.bpe.model", "tokenizer_config.json", "special_tokens_map.json"}
    assert a.keys() == {*OTHER_FILES, "config.json", "model.safetensors", "SOURCE_README.md"} - {"README.md"}
    assert b.keys() == {*a, "README.md"} - tokenizer
    assert (b["vocab.txt"], b["README.md"]) == (b"own", b"# Ours\n")
    for name in a.keys() - {"config.json", "model.safetensors"}:
        assert a[name] == OTHER_FILES[name.removeprefix("SOURCE_")].encode(), name
    assert "README.md" not in contents(shutil.copytree(tmp_path / "a", tmp_path / "c"))
    np.testing.assert_array_equal(encoder_output(tmp_path / "b"), encoder_output(sentence_encoder))


def test_the_config_keeps_the_keys_of_its_source_that_still_hold(tmp_path):
    names = {0: "bad", 1: "good", 2: "so so"}
    config = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "classifier_dropout": 0.25}
    model = tiny_model("BertForSequenceClassification", "bfloat16", **config, problem_type="multi_label_classification")
    model.config.mine = [1]
    model.save_pretrained(tmp_path / "source")
    written = {}
    for name, head, labels in (
        ("same", "classification", 3),
        ("fewer", "classification", 2),
        ("none", "pretraining", 0),
    ):
        read = read_folder(shutil.copytree(tmp_path / "source", tmp_path / name), head=None)
        params = {key: value for key, value in read.params.items() if key != "classifier"}
        fresh = read_folder(write_without_classifier(tmp_path / name), head=head, num_labels=labels)
        assert params.keys() <= fresh.params.keys()
        write_folder(tmp_path / f"{name} out", fresh.model, fresh.params, head=head, source=tmp_path / "source")
        written[name] = transformers.AutoConfig.from_pretrained(tmp_path / f"{name} out")
        assert written[name].mine == [1] and written[name].classifier_dropout == 0.25
        assert written[name].dtype == torch.float32
    assert (written["same"].id2label, written["same"].label2id) == (names, config["label2id"])
    assert written["same"].problem_type == written["fewer"].problem_type == "single_label_classification"
    assert written["fewer"].id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert written["none"].problem_type is None and "so so" not in (tmp_path / "none out" / "config.json").read_text()


def write_without_classifier(folder):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.slow
def test_a_run_keeps_what_came_in_and_the_next_finds_it(tiny, tmp_path):
    """The next run starts from the workdir, and takes the files beside its weights, whatever became of the source."""
    sizes = {"vocab_size": 160, "num_hidden_layers": 1, "intermediate_size": 32, "max_position_embeddings": 32}
    source, run = tmp_path / "source", tmp_path / "run"
    tiny_model("BertModel", **sizes, classifier_dropout=0.25).save_pretrained(source, variant="fp16")
    write_files(source, OTHER_FILES)
    changes = {"init_from": str(source), "init_variant": "fp16", "steps": 1, "prune": {"begin": 0, "end": 1}}
    done = tiny.run("pretrain", tiny.pretrain_yaml(tmp_path / "run.yaml", **changes), "--workdir", run)
    assert done.code == 0, done.err
    shutil.rmtree(source)
    assert folder_beside(str(run)) == run / "hf"
    files = contents(run / "hf")
    tokenizer = contents(tiny.data / "tokenizer")
    given = OTHER_FILES.keys() - tokenizer.keys() - {"README.md", "added_tokens.json", "sentencepiece.bpe.model"}
    assert given - {"special_tokens_map.json"} <= files.keys()
    assert files["SOURCE_README.md"] == OTHER_FILES["README.md"].encode()
    card = files["README.md"].decode()
    assert "Pruned while it was trained, by magnitude" in card and "jaxprune pretrain config.yaml" in card
    assert "| mlm_accuracy |" in card and f"init_from: {'/'.join(source.parts[-2:])}" in card
    assert all(files[name] == OTHER_FILES[name].encode() for name in given & files.keys())
    settings = "tokenizer_config.json"
    assert all(files[name] == content for name, content in tokenizer.items() if name != settings)
    assert json.loads(files[settings]) == json.loads(tokenizer[settings]) | {"model_max_length": 32}
    theirs = transformers.AutoTokenizer.from_pretrained(run / "hf")
    assert len(theirs("the cat " * 50, truncation=True).input_ids) == 32
    assert json.loads(files["config.json"])["classifier_dropout"] == 0.25


def test_a_source_that_is_gone_is_said_and_no_error(tmp_path, caplog):
    assert folder_beside("") is None
    assert folder_beside(str(tmp_path / "gone")) is None
    assert f"{tmp_path / 'gone'}: no such directory" in caplog.text


def test_the_folder_beside_a_workdir(tmp_path):
    """Its hf/, or while there is none that of what it started from."""
    first, second = tmp_path / "first", tmp_path / "second"
    for workdir, cfg in ((first, PretrainConfig()), (second, FinetuneConfig(init_from=str(first)))):
        workdir.mkdir()
        (workdir / "config.yaml").write_text(to_yaml(cfg))
    assert folder_beside(str(second)) is None
    write_files(first, {"hf/config.json": "{}"})
    assert folder_beside(str(second)) == folder_beside(str(first)) == first / "hf"
    write_files(second, {"hf/config.json": "{}"})
    assert folder_beside(str(second)) == second / "hf"


# --- disks ---


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_full_disk_names_what_was_to_be_written(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "source")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        code = main(["prune", str(tmp_path / "source"), str(tmp_path / "out"), "--sparsity", "0.5"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    error = capsys.readouterr().err
    assert code == 74 and f"{tmp_path / 'out' / 'model.safetensors'}: File too large; make room" in error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_link_to_an_empty_directory_is_filled(model, tmp_path):
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write_masked(tmp_path / "source", tmp_path / "out", drawn_masks(tmp_path / "source"))
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out", "source"]
