"""A classifier that a checkpoint has: taken for the same labels, else drawn anew."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxlm.core.trees import flatten
from jaxlm.experiment.parameters import new_params
from jaxlm.experiment.prepare import prepare
from jaxlm.models.checkpoint import BUILT_IN
from tests.small_runs import CLASSIFY, NER, config, quietly

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("compiled_once")]

TOKENS = "BertForTokenClassification"
TAGS = ["I-ORG", "B-PER", "O", "I-PER", "B-LOC", "B-ORG", "I-LOC"]
SENTENCES = [
    {"tokens": "Ada Lovelace left Paris for Acme".split(),
     "labels": ["B-PER", "I-PER", "O", "B-LOC", "O", "B-ORG"]},
    {"tokens": "nothing of the United Nations in New York".split(),
     "labels": ["O", "O", "O", "B-ORG", "I-ORG", "O", "B-LOC", "I-LOC"]},
]  # fmt: skip
TEXTS = [
    {"text": "the market fell by a third", "label": "business"},
    {"text": "a goal in the last minute", "label": "sport"},
    {"text": "the moon is round", "label": "science"},
]


@pytest.fixture
def make(torch, tmp_path):
    """``make(class, labels)``: a tiny random classifier that transformers wrote."""
    import transformers

    def made(name, labels, **options):
        kind = getattr(transformers, name)
        folder = shutil.copytree(BUILT_IN["tiny"], tmp_path / "model")
        given = json.loads((folder / "config.json").read_text())
        if not name.startswith("Bert"):
            options |= {"pad_token_id": 0}
            del given["model_type"], given["architectures"]
        given |= {"id2label": dict(enumerate(labels)), **options}
        given["label2id"] = {label: number for number, label in enumerate(labels)}
        torch.manual_seed(0)
        model = kind(kind.config_class(**given)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
        return model, folder

    return made


def prepared(folder, records, file=NER, say=quietly, **changes):
    """A run on records in memory, and its parameters before the first step."""
    made = config(file, model__pretrained=str(folder), train__batch_size=8, **changes)
    object.__setattr__(made.data, "train", tuple(records))
    run = prepare(made, None, say)
    with jax.set_mesh(run.parts.mesh):
        return run, new_params(run.parts, run.checkpoint)


def test_before_the_first_step_predictions_are_those_of_transformers(torch, make):
    theirs, folder = make(TOKENS, TAGS)
    said = []
    run, params = prepared(folder, SENTENCES, say=said.append)
    assert "head   the checkpoint's own, of 7 labels" in said
    assert run.parts.task.labels != TAGS
    with jax.set_mesh(run.parts.mesh):
        found = run.parts.evaluator().evaluate(params, run.data["train"]).predictions
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for sentence, prediction in zip(SENTENCES, found, strict=True):
        words = sentence["tokens"]
        given = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            scores = theirs(**given).logits[0].softmax(-1)
        ids = given.word_ids()
        firsts = [ids.index(number) for number in range(len(words))]
        assert prediction["predicted"] == [
            TAGS[number] for number in scores[firsts].argmax(-1)
        ]
        # Rounded to six digits.
        wanted = scores[firsts].max(-1).values
        np.testing.assert_allclose(prediction["scores"], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "RobertaForSequenceClassification"]
)
def test_the_classifier_of_texts_comes_with_its_pooler(torch, make, name):
    labels = ["sport", "science", "business"]
    theirs, folder = make(name, labels)
    run, params = prepared(folder, TEXTS, CLASSIFY)
    with jax.set_mesh(run.parts.mesh):
        found = run.parts.evaluator().evaluate(params, run.data["train"]).predictions
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for record, prediction in zip(TEXTS, found, strict=True):
        given = tokenizer(record["text"], return_tensors="pt")
        with torch.no_grad():
            wanted = (
                theirs(given["input_ids"], attention_mask=given["attention_mask"])
                .logits[0]
                .softmax(-1)
            )
        mine = [prediction["probabilities"][label] for label in labels]
        np.testing.assert_allclose(mine, wanted, atol=1e-5)


def test_on_a_mesh_the_classifier_is_the_same_to_the_bit(make):
    _, folder = make(TOKENS, TAGS)
    one = flatten(prepared(folder, SENTENCES, mesh__data=1)[1])
    many = flatten(prepared(folder, SENTENCES, mesh__data=1, mesh__fsdp=8)[1])
    for name in one:
        assert np.array_equal(one[name], many[name]), name


@pytest.mark.parametrize(
    ("name", "labels", "changes"),
    [
        (TOKENS, TAGS[:-1], {}),
        (TOKENS, [*TAGS, "B-X"], {}),
        ("BertForSequenceClassification", TAGS, {}),
    ],
)
def test_for_other_labels_or_another_task_a_head_is_drawn(make, name, labels, changes):
    _, folder = make(name, labels)
    said = []
    run, params = prepared(folder, SENTENCES, say=said.append)
    notices = [line for line in said if line.startswith("head ")]
    assert len(notices) == (name == TOKENS)
    assert all("new: the checkpoint's is for I-ORG, B-PER" in each for each in notices)
    wanted = flatten(run.parts.model.init(jax.random.key(run.parts.config.seed)))
    np.testing.assert_allclose(
        params["classifier"]["kernel"], wanted["classifier/kernel"], rtol=1e-6
    )
