"""Masked and causal language modelling: rows of text, what is predicted, scores."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.windows import Windowing
from jaxlm.models.checkpoint import open_checkpoint
from jaxlm.models.functional import functional
from jaxlm.models.transformer import Transformer
from jaxlm.tasks import masked_lm
from jaxlm.tasks.causal_lm import CausalLanguageModeling
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.masked_lm import MaskedLanguageModeling

TEXT = "The river rose in the night, and by the morning the bridge was gone. " * 6


def record(text=TEXT):
    return {"id": "1", "source": "a.txt", "text": text}


@pytest.fixture(scope="module")
def gpt():
    checkpoint = open_checkpoint("random:gpt-tiny")
    return Tokenizer(checkpoint.directory), checkpoint.config


@pytest.fixture(scope="module")
def causal(gpt):
    def make(room=16, stride=1):
        return CausalLanguageModeling(gpt[0], Windowing(room, stride, "split"))

    return make


@pytest.fixture(scope="module")
def masked(tiny):
    def make(rate=0.15, room=64):
        windowing = Windowing(room, 0, "split")
        config = TaskConfig(name="masked_lm", mask_rate=rate)
        return MaskedLanguageModeling.make(config, [], tiny.tokenizer, windowing)

    return make


@pytest.mark.parametrize("stride", [1, 5])
def test_every_token_but_the_first_is_predicted_once(causal, stride):
    task = causal(stride=stride)
    whole = [*task.tokenizer.text(TEXT).tolist(), task.tokenizer.end]
    predicted = []
    for window in task.encode(record(), 0):
        tokens, labels = window.tokens["tokens"], window.tokens["labels"]
        counts = np.flatnonzero(labels >= 0)
        assert labels[counts].tolist() == tokens[counts + 1].tolist()
        predicted += labels[counts].tolist()
    assert predicted == whole[1:]


def test_rows_without_a_shared_token_lose_one_prediction_each(causal):
    windows = list(causal(stride=0).encode(record(), 0))
    assert [int((w.tokens["labels"] >= 0).sum()) for w in windows] == [
        window.length - 1 for window in windows
    ]


def test_a_frame_stands_where_a_text_begins_and_ends(tiny):
    windowing = Windowing(8, 1, "split")
    task = CausalLanguageModeling(tiny.tokenizer, windowing)
    frame, rows = tiny.tokenizer.frame, list(task.encode(record(), 0))
    specials = {*frame.before, *frame.after}
    inside = [specials & set(row.tokens["tokens"].tolist()) for row in rows]
    assert inside[0] == set(frame.before) and inside[-1] == set(frame.after)
    assert not any(inside[1:-1]) and len(rows) > 3


def batch_of(task, text=TEXT, index=0):
    rows = list(task.encode(record(text), index))
    fields = {
        name: np.stack([row.tokens[name] for row in rows[:-1]])
        for name in rows[0].tokens
    }
    return {name: jnp.asarray(value) for name, value in fields.items()}


def test_tokens_are_chosen_hidden_and_changed_at_berts_rates(masked):
    task = masked()
    batch = batch_of(task, TEXT * 200)
    shown = task.present(batch, jax.random.key(3))
    before, after = np.asarray(batch["tokens"]), np.asarray(shown["tokens"])
    chosen = np.asarray(shown["labels"]) >= 0
    content = np.asarray(batch["dice"]) >= 0
    count = chosen.sum()
    assert count > 2000

    def near(found, rate, of):  # four standard deviations
        return abs(found / of - rate) < 4 * math.sqrt(rate * (1 - rate) / of)

    assert near(count, 0.15, content.sum()) and not chosen[~content].any()
    assert near((after == task.mask)[chosen].sum(), 0.8, count)
    same = 0.1 + 0.1 / task.vocab_size
    assert near((after == before)[chosen].sum(), same, count)
    assert (after == before)[~chosen].all()
    labels = np.asarray(shown["labels"])
    assert (labels[chosen] == before[chosen]).all() and (labels[~chosen] == -1).all()


def test_another_step_hides_other_tokens_and_evaluation_the_same(masked):
    task = masked()
    batch = batch_of(task, TEXT * 20)

    def choice(key):
        return np.asarray(task.present(batch, key)["labels"] >= 0)

    first, second = (choice(jax.random.key(seed)) for seed in (0, 1))
    overlap = (first & second).sum() / first.sum()
    assert 0.05 < overlap < 0.3  # 0.15 where the two know nothing of each other
    assert (choice(None) == choice(None)).all() and (choice(None) != first).any()


def test_what_is_hidden_in_evaluation_does_not_hang_on_the_batch(masked):
    task = masked()
    whole = task.present(batch_of(task, TEXT * 3), None)["labels"]
    rows = [row.tokens for row in task.encode(record(TEXT * 3), 0)][1:2]
    alone = {name: jnp.asarray(np.stack([r[name] for r in rows])) for name in rows[0]}
    assert (task.present(alone, None)["labels"][0] == whole[1]).all()


def test_present_masks_alike_on_every_layout(masked):
    task = masked()
    batch = batch_of(task, TEXT * 40)
    batch = {name: value[:16] for name, value in batch.items()}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    key = jax.random.key(5)
    split = jax.jit(task.present)(jax.device_put(batch, rows), key)
    for name, value in task.present(batch, key).items():
        assert (np.asarray(split[name]) == np.asarray(value)).all()


def test_asking_at_the_chosen_places_alone_changes_no_loss_and_no_gradient(
    masked, tiny
):
    task = masked()
    config = replace(tiny.config, initializer_range=0.2)
    model = functional(lambda rngs: task.build(Transformer(config, rngs), rngs))
    params = model.init(jax.random.key(0))
    batch = batch_of(task, TEXT * 4)
    shape = batch["tokens"].shape
    batch["segments"] = jnp.ones(shape, jnp.int32)
    batch["positions"] = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
    few = task.present(batch, jax.random.key(3))
    every = {name: few[name] for name in few if name != "places"}
    count = few["places"].shape[1]
    assert count < shape[1] / 2

    def loss(params, batch):
        outputs = task.infer(model.apply, params, batch)
        [loss] = task.losses(outputs, batch).values()
        [hits] = task.measures(outputs, batch).values()
        return loss.total, (loss.weight, hits, outputs)

    made = jax.value_and_grad(loss, has_aux=True)
    (total, (weight, hits, outputs)), gradient = made(params, few)
    (wanted, (weights, all_hits, whole)), gradients = made(params, every)
    assert outputs["logits"].shape[1] == count and weight == weights > 0
    assert hits == all_hits
    np.testing.assert_allclose(total, wanted, rtol=1e-6)
    for name in ("tokens/nats", "tokens/counted", "tokens/hits"):
        assert outputs[name].shape == shape
        np.testing.assert_allclose(outputs[name], whole[name], rtol=1e-5, atol=1e-6)
    for one, other in zip(*map(jax.tree.leaves, (gradient, gradients)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_no_more_tokens_of_a_row_are_chosen_than_there_is_room_for(masked, monkeypatch):
    task = masked(rate=0.5)
    batch = batch_of(task, TEXT * 20)
    whole = np.asarray(task.present(batch, None)["labels"])
    monkeypatch.setattr(masked_lm, "most", lambda length, rate: 16)
    shown = task.present(batch, None)
    labels, places = np.asarray(shown["labels"]), np.asarray(shown["places"])
    assert (whole >= 0).sum(1).max() > 16 == (labels >= 0).sum(1).max()
    for row, full, at in zip(labels, whole, places, strict=True):
        first = np.flatnonzero(full >= 0)[:16]
        assert (np.flatnonzero(row >= 0) == first).all()
        assert at.tolist() == [*first, *[len(row)] * (16 - len(first))]


@pytest.mark.parametrize(("length", "rate", "room"), [(512, 0.15, 112), (8, 0.9, 8)])
def test_there_is_room_for_four_standard_deviations(length, rate, room):
    assert masked_lm.most(length, rate) == room


def test_scores_are_sums_over_all_tokens(causal):
    task = causal()
    pieces = [np.array([6.0, 3, 1]), np.array([2.0, 1, 1])]
    one, two = (task.combine(record(), [piece]) for piece in pieces)
    both = task.combine(record(), pieces)
    assert both["perplexity"] == pytest.approx(math.exp(8 / 4))
    scores = task.score([one, two], [])
    assert scores["perplexity"] == pytest.approx(math.exp(2))
    assert scores["accuracy"] == 0.5 and set(scores) == set(task.metric_names())
    assert scores["bits_per_token"] == pytest.approx(2 / math.log(2))
    assert "4" in task.report([one, two], [])


def test_a_text_of_which_nothing_is_predicted_has_no_perplexity(causal):
    assert causal().combine(record(), [np.zeros(3)])["perplexity"] is None


def test_the_loss_is_that_of_the_labels_alone(gpt, causal):
    task = causal()
    config = replace(gpt[1], initializer_range=0.2)
    model = functional(lambda rngs: task.build(Transformer(config, rngs), rngs))
    params = model.init(jax.random.key(0))
    batch = batch_of(task)
    shape = batch["tokens"].shape
    batch["segments"] = jnp.ones(shape, jnp.int32)
    batch["positions"] = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
    outputs = task.infer(model.apply, params, batch)
    [(name, loss)] = task.losses(outputs, batch).items()
    logs = np.asarray(jax.nn.log_softmax(outputs["logits"]), np.float64)
    labels = np.asarray(batch["labels"])
    wanted = -sum(logs[r, s, labels[r, s]] for r, s in np.argwhere(labels >= 0))
    assert name == "lm" and loss.weight == (labels >= 0).sum()
    np.testing.assert_allclose(loss.total, wanted, rtol=1e-5)
    np.testing.assert_allclose(outputs["tokens/nats"].sum(), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "source", "message"),
    [
        ("causal", "random:tiny", "is an encoder"),
        ("masked", "random:gpt-tiny", "is a decoder"),
    ],
)
def test_a_model_that_sees_otherwise_is_refused(causal, masked, task, source, message):
    made = {"causal": causal, "masked": masked}[task]()
    config = open_checkpoint(source).config
    with pytest.raises(UserError, match=message):
        functional(lambda rngs: made.build(Transformer(config, rngs), rngs))


def test_a_tokenizer_without_a_mask_is_refused(gpt):
    windowing = Windowing(8, 0, "split")
    with pytest.raises(UserError, match="has no mask token"):
        MaskedLanguageModeling.make(TaskConfig(name="masked_lm"), [], gpt[0], windowing)


def test_a_record_without_text_is_refused(causal):
    bad = {"id": "1", "source": "a.jsonl:1", "tokens": ["a"]}
    with pytest.raises(UserError, match=r"a\.jsonl:1: no text"):
        list(causal().encode(bad, 0))
