"""The door of exports: what transformers opens says what our model says.

Errors of logits are of fp32 in another order of summation: a few 1e-7 a layer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import api
from jaxlm.core import config as configs
from jaxlm.core import schema
from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import write
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.experiment import ExperimentConfig
from jaxlm.experiment.exporting import export_run
from jaxlm.experiment.runs import Run
from jaxlm.experiment.wiring import save_labels, save_model
from jaxlm.models.checkpoint import BUILT_IN, open_checkpoint
from jaxlm.models.exporting import Layout
from jaxlm.models.pretrained import load, make_batch
from jaxlm.train.recorded import read_results
from tests.doors.conftest import ROOT
from tests.models.families import DECODER, ENCODER, GPT2, MODERNBERT
from tests.models.test_exporting import opened, same, tensors

SENTENCES = [
    "Ada Lovelace left Paris for London in 1833, and wrote to Charles Babbage.",
    "The match in Rome ended 2-1.",
    "Zürich, naïve café; 東京 [MASK] nothing-like-it!",
]
CLASS = "AutoModelForTokenClassification"
TEXTS = "AutoModelForSequenceClassification"


def compare(torch, run, step, folder, name):
    """Logits of transformers and of the run, on sentences in one padded batch."""
    import transformers

    model = opened(folder, getattr(transformers, name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for sentence in SENTENCES:
        frame, ids = run.parts.tokenizer.frame, run.parts.tokenizer.text(sentence)
        ids = [*frame.before, *ids.tolist(), *frame.after]
        assert tokenizer(sentence)["input_ids"] == ids
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**batch).logits.numpy()
    mask = batch["attention_mask"].numpy().astype(bool)
    rows = make_batch(run.parts.transformer, batch["input_ids"].numpy(), mask, "")
    ours = jax.jit(run.parts.model.apply)(run.params(step), rows)["logits"]
    ours = np.asarray(ours)[mask] if theirs.ndim == 3 else np.asarray(ours)[:, 0]
    theirs = theirs[mask] if theirs.ndim == 3 else theirs
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return model, tokenizer


def predicted(torch, model, tokenizer, sentence):
    with torch.no_grad():
        found = model(**tokenizer(sentence, return_tensors="pt")).logits
    return found[0].softmax(-1).numpy()


def test_a_run_of_entities_opens_with_its_logits_and_labels(
    torch, ner_run, call, tmp_path
):
    answer = call("export", f"--workdir={ner_run}", f"--output={tmp_path / 'out'}")
    assert answer.code == 0 and answer.out == f"{tmp_path / 'out'}\n", answer
    assert "model.safetensors" in answer.err
    run = Run(ner_run)
    step = run.choose("best")[0]
    model, tokenizer = compare(torch, run, step, tmp_path / "out", CLASS)
    labels = run.parts.task.labels
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {label: n for n, label in enumerate(labels)}
    assert model.dtype == torch.float32
    assert tokenizer.model_max_length == 128
    # The same words and labels as our own door says.
    words = "Ada Lovelace left Paris for London".split()
    (ours,) = run.predict([words], step)
    batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        shares = model(**batch).logits[0].softmax(-1).numpy()
    ids = batch.word_ids()
    first = [ids.index(word) for word in range(len(words))]
    named = [model.config.id2label[int(n)] for n in shares[first].argmax(-1)]
    assert named == ours["predicted"]
    np.testing.assert_allclose(shares[first].max(-1), ours["scores"], atol=1e-5)


def test_a_run_of_texts_opens_with_its_logits_and_labels(
    torch, topics_run, call, tmp_path
):
    out = tmp_path / "out"
    call("export", f"--workdir={topics_run}", f"--output={out}", "--step=last")
    run = Run(topics_run)
    model, tokenizer = compare(torch, run, 160, out, TEXTS)
    for sentence, ours in zip(SENTENCES, run.predict(SENTENCES, 160), strict=True):
        found = predicted(torch, model, tokenizer, sentence)
        theirs = {model.config.id2label[n]: share for n, share in enumerate(found)}
        assert theirs == pytest.approx(ours["probabilities"], abs=1e-5)


RUNS = {
    "gpt2": ({**GPT2, "n_positions": 64}, "cls"),
    "llama": (DECODER, "cls"),
    "modernbert": (MODERNBERT, "mean"),
    "roberta": (ENCODER, "cls"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_text_classifier_of_another_family_opens_too(torch, kind, tmp_path):
    """Its last token is found by the padding, and its mean leaves it out."""
    sizes, pooling = RUNS[kind]
    positions = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    sizes = {**sizes, "vocab_size": 2000, positions: 66}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    run = untrained(tmp_path, {"model_type": kind, **sizes, **ends}, pooling)
    out = tmp_path / "out"
    export_run(run, 1, out, Layout())
    model, _ = compare(torch, run, 1, out, TEXTS)
    assert model.config.id2label == {0: "bad", 1: "good|better"}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("given", [3, None])
def test_a_last_token_that_pads_too_is_not_passed_over(torch, kind, given, tmp_path):
    """Every text ends in [SEP], which is the padding, as in many a decoder."""
    positions = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    sizes = {**RUNS[kind][0], "vocab_size": 2000, positions: 66}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": given}
    run = untrained(tmp_path, {"model_type": kind, **sizes, **ends}, "cls")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = run.workdir / "model" / name
        state = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(state | {"pad_token": "[SEP]"}))
    out = tmp_path / "out"
    export_run(run, 1, out, Layout())
    model, tokenizer = compare(torch, run, 1, out, TEXTS)
    assert model.config.pad_token_id == tokenizer.pad_token_id != 3


def test_new_tokens_go_out_and_the_padding_of_their_table_does_not(torch, tmp_path):
    sizes = {**RUNS["roberta"][0], "vocab_size": 2000, "max_position_embeddings": 66}
    config = {"model_type": "roberta", **sizes, "pad_token_id": 0}
    run = untrained(tmp_path, config, "cls", vocab_size=2003, vocab_multiple=16)
    assert run.parts.transformer.vocab_rows == 2016
    out = tmp_path / "out"
    export_run(run, 1, out, Layout())
    model, _ = compare(torch, run, 1, out, TEXTS)
    assert model.get_input_embeddings().weight.shape[0] == 2003


def untrained(folder, sizes, pooling, **changes):
    """A run of texts over new weights, as a workdir holds it, without checkpoints."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (BUILT_IN["tiny"] / name).read_bytes()
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(sizes))
    config = api.config("classify", tiny=True)
    config.task.pooling = pooling
    config.model.update(changes)
    config.mesh.data = 1
    config = schema.build(ExperimentConfig, config.to_dict())
    workdir = folder / "run"
    configs.write(workdir / configs.FILE, config, configs.versions())
    checkpoint = open_checkpoint(f"random:{folder}")
    save_model(workdir / "model", checkpoint, Tokenizer(folder))
    save_labels(workdir / "model", ["bad", "good|better"])
    run = Run(workdir)
    params = jax.jit(run.parts.model.init)(jax.random.key(0))
    # Not the small ones of a new model, or all texts would look the same.
    run._params = 1, jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(7 * leaf), params)
    return run


@pytest.fixture(scope="module")
def exported(ner_run, tmp_path_factory):
    """The files of an export in one file of weights."""
    return api.export(ner_run, tmp_path_factory.mktemp("exported") / "out")


def test_an_export_is_imported_bit_for_bit(exported, ner_run):
    run = Run(ner_run)
    ours = jax.tree.leaves(run.params(run.choose("best")[0]))
    model = load(str(exported))
    assert model.head == "tokens" and model.labels == run.parts.task.labels
    for mine, read in zip(ours, jax.tree.leaves(model.params), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(read).tobytes()


def test_small_files_hold_the_same_tensors(exported, ner_run, call, tmp_path):
    out = tmp_path / "out"
    size = "--max-shard-size=100KB"
    answer = call("export", f"--workdir={ner_run}", f"--output={out}", size)
    assert answer.code == 0
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    total = len(files)
    assert [path.name for path in files] == [
        f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)
    ]
    assert total > 3 and set(index["weight_map"].values()) == {f.name for f in files}
    sizes = sorted(path.stat().st_size for path in files)
    assert sizes[-2] < 110_000 < sizes[-1]  # but for the one tensor that is larger
    same(tensors(out), tensors(exported))
    assert index["metadata"]["total_size"] == sum(
        value.nbytes for value in tensors(out).values()
    )


def test_small_files_open_too(torch, ner_run, exported, tmp_path):
    from transformers import AutoModelForTokenClassification

    out = api.export(ner_run, tmp_path / "out", max_shard_size=50_000)
    ours = opened(exported, AutoModelForTokenClassification).state_dict()
    for name, value in (
        opened(out, AutoModelForTokenClassification).state_dict().items()
    ):
        assert torch.equal(value, ours[name])


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_narrower_dtype_rounds_as_torch_does(
    torch, ner_run, exported, tmp_path, dtype, name
):
    from transformers import AutoModelForTokenClassification

    out = api.export(ner_run, tmp_path / "out", dtype=dtype)
    theirs = opened(exported, AutoModelForTokenClassification).state_dict()
    model = opened(out, AutoModelForTokenClassification)
    assert model.dtype == getattr(torch, name)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, theirs[key].to(value.dtype)), key


def test_the_card_has_data_metrics_config_versions_and_no_licence(exported, ner_run):
    card = (exported / "README.md").read_text()
    step = Run(ner_run).choose("best")[0]
    found = [each for each in read_results(ner_run) if each["step"] == step]
    scores = [f"{each['f1']:.4f}" for each in found]
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "pipeline_tag: token-classification" in card and "# license: fill in" in card
    assert scores and f"| f1 | {' | '.join(scores)} |" in card
    assert "sample:ner:train[20:64]" in card and "`B-PER`" in card
    assert '"optimizer.learning_rate": 0.001' in card
    assert f"| jax | {jax.__version__} | {jax.__version__} |" in card


def test_a_run_of_before_without_settings_of_its_tokenizer_opens(
    torch, ner_copy, tmp_path
):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (ner_copy / "model" / name).unlink()
    (ner_copy / "model" / "digests.json").unlink()
    out = api.export(ner_copy, tmp_path / "out")
    run = Run(ner_copy)
    _, tokenizer = compare(torch, run, run.choose("best")[0], out, CLASS)
    assert tokenizer.model_max_length == 128 and tokenizer.mask_token == "[MASK]"


def test_what_replaces_an_export_leaves_nothing_of_it(ner_run, call, tmp_path):
    out = tmp_path / "out"
    start = ["export", f"--workdir={ner_run}", f"--output={out}"]
    assert call(*start, "--max-shard-size=100KB").code == 0
    assert "is not empty" in call(*start).error
    assert call(*start, "--overwrite").code == 0
    assert len(list(out.glob("*.safetensors*"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_is_never_replaced(ner_run, call, tmp_path):
    start = ["export", f"--workdir={ner_run}", "--overwrite"]
    (tmp_path / "mine.txt").write_text("mine")
    error = call(*start, f"--output={tmp_path}").error
    assert "mine.txt" in error
    assert "config.json" in call(*start, f"--output={ner_run / 'model'}").error
    assert "checkpoints" in call(*start, f"--output={ner_run}").error
    error = call(*start, f"--output={tmp_path / 'mine.txt'}").error
    assert "a file stands there" in error
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_folder_with_the_usual_names_is_not_taken_for_an_export(
    ner_run, exported, call, tmp_path
):
    """A checkpoint of somebody's has the same files; the list says what we wrote."""
    mine = shutil.copytree(exported, tmp_path / "mine")
    start = ["export", f"--workdir={ner_run}", f"--output={mine}", "--overwrite"]
    (mine / "vocab.txt").write_text("mine")
    assert "vocab.txt is not of that" in call(*start).error
    (mine / "vocab.txt").unlink()
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    kept = before.pop("jaxlm_export.json")
    for wrong in (None, b"[1]", b'{"files": 3}'):
        (mine / "jaxlm_export.json").unlink(missing_ok=True)
        if wrong:
            (mine / "jaxlm_export.json").write_bytes(wrong)
        assert "is not of that" in call(*start).error
    for name, content in before.items():
        assert (mine / name).read_bytes() == content
    (mine / "jaxlm_export.json").write_bytes(kept)
    assert call(*start).code == 0


def test_an_output_is_apart_from_what_is_read(ner_copy, exported, call, tmp_path):
    """Whoever replaces a folder must not delete what it is made of."""
    inner = call("export", f"--workdir={ner_copy}", f"--output={ner_copy / 'out'}")
    assert "lies in the source" in inner.error
    error = call("export", f"--model={exported}", f"--output={exported / 'out'}").error
    assert "lies in the source" in error
    link = tmp_path / "link"
    link.symlink_to(exported)
    error = call("export", f"--model={link}", f"--output={exported}", "--overwrite")
    assert "is the source itself" in error.error
    run = Run(ner_copy)
    object.__setattr__(run.config.model, "pretrained", str(exported))
    with pytest.raises(UserError, match="is the source itself"):
        export_run(run, run.choose("best")[0], exported, Layout(overwrite=True))


def test_the_card_of_new_weights_says_so(call, tmp_path):
    call("export", "--model=random:tiny", f"--output={tmp_path / 'new'}")
    again = f"--output={tmp_path / 'again'}"
    call("export", f"--model={tmp_path / 'new'}", again)
    new, same = ((tmp_path / name / "README.md").read_text() for name in
                 ("new", "again"))  # fmt: skip
    assert "new random weights" in new and "the same weights" not in new
    assert "the same weights" in same and "random" not in same


def test_a_failure_leaves_what_was_there(ner_run, tmp_path, monkeypatch):
    out = api.export(ner_run, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxlm.models.exporting.write_shards", fail)
    run = Run(ner_run)
    with pytest.raises(OSError):
        export_run(run, run.choose("best")[0], out, Layout(overwrite=True))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "one of the arguments --model --workdir"),
        (["--workdir={run}", "--model=x"], "not allowed with argument --workdir"),
        (["--workdir={run}", "--step=7"], "--step=7"),
        (["--workdir={run}", "--step=all"], "--step=all"),
        (["--workdir={folder}/none"], "{folder}/none/config.json: no such file"),
        (["--model={folder}/none"], "no such folder"),
        (["--model={folder}"], "no config.json"),
        (["--model=random:tiny", "--step=3"], "--step chooses a checkpoint"),
        (["--workdir={run}", "--max-shard-size=5XB"], "'5XB' is no size"),
        (["--workdir={run}", "--max-shard-size=0"], "'0' is no size"),
        (["--workdir={run}", "--dtype=int8"], "--dtype"),
        (["--workdir={run}", "--config.task.pooling=cls"], "--config.task.pooling"),
    ],
)
def test_a_mistake_is_one_line(ner_run, call, tmp_path, arguments, reason):
    given = [each.format(run=ner_run, folder=tmp_path) for each in arguments]
    error = call("export", *given, f"--output={tmp_path / 'out'}").error
    assert reason.format(folder=tmp_path) in error
    assert list(tmp_path.iterdir()) == []


def test_a_mean_that_transformers_does_not_take_is_refused(call, topics_run, tmp_path):
    run = Run(topics_run)
    object.__setattr__(run.config.task, "pooling", "mean")
    with pytest.raises(UserError, match="config.task.pooling=cls"):
        export_run(run, 160, tmp_path / "out", Layout())
    assert list(tmp_path.iterdir()) == []


def test_the_source_itself_is_not_overwritten(call, tmp_path, exported):
    error = call("export", f"--model={exported}", f"--output={exported}", "--overwrite")
    assert "is the source itself" in error.error


def test_numbers_that_a_narrower_dtype_lacks_are_named(call, tmp_path):
    source = tmp_path / "in"
    call("export", "--model=random:tiny", f"--output={source}")
    large = tensors(source)
    large["pooler.dense.bias"] = np.full(64, 1e6, np.float32)
    name = next(each for each in large if each.endswith("query.bias"))
    large[name] = np.full(64, 1e6, np.float32)
    write(source / "model.safetensors", large)
    start = ["export", f"--model={source}", f"--output={tmp_path / 'out'}"]
    answer = call(*start, "--dtype=fp16")
    assert answer.code == 2 and not (tmp_path / "out").exists()
    assert name in answer.err and "--dtype=bf16" in answer.err
    assert call(*start, "--dtype=bf16").code == 0


def test_an_export_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from jaxlm.export import main\n"
        f"main(['--model=random:tiny', '--output={tmp_path / 'out'}'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "out"
    assert (tmp_path / "out" / "model.safetensors").exists()
