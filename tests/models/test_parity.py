"""Our BERT against transformers and PyTorch: hidden states, logits, every gradient.

Errors are norms of differences over norms of torch's figures, at real positions. Two
correct fp32 implementations differ by rounding in another order of summation: a few
1e-7 for each layer forward, some ten times that for gradients. 1e-5 and 1e-4 stand well
above this, and far below the 1e-3 of a wrong GELU or epsilon.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.grouping import stack_names
from jaxlm.core.trees import flatten
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.models.families.bert import BERT
from jaxlm.models.functional import functional
from jaxlm.models.heads import Head
from jaxlm.models.transformer import Transformer
from jaxlm.tasks.losses import cross_entropy

pytestmark = pytest.mark.parity

FORWARD, BACKWARD = 1e-5, 1e-4
LABELS = 5
SENTENCES = (
    "George Washington went to Washington .",
    "U.N. official Ekeus heads for Baghdad .",
    "The European Commission said on Thursday it disagreed with German advice to"
    " consumers to shun British lamb until scientists determine whether mad cow"
    " disease can be transmitted to sheep .",
    "Yes",
    "It rained all night in Bucharest , and the trains stood still .",
    "She works for Acme Rockets GmbH in Köln 🚀 since 1998 .",
    "An unbelievably counterintuitive hyperparametrisation",
    "Nadim Ladki",
)


def error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def their_names(stacks):
    """(our name, layer or None, their name, transposed) of each parameter of BERT."""
    layers = stack_names(stacks)
    for weight in BERT.weights:
        if not weight.ours.startswith("layers/"):
            yield weight.ours, None, weight.theirs, weight.transpose
            continue
        for stack, numbers in layers:
            for place, number in enumerate(numbers):
                ours = weight.ours.replace("layers", stack, 1)
                yield ours, place, weight.theirs.format(layer=number), weight.transpose


def check_gradients(ours, theirs, stacks):
    """Compare the gradient of every parameter that torch's backbone has.

    The bias of the keys moves all scores of a query alike, which softmax ignores: its
    true gradient is zero, and both sides hold rounding. It is measured against that of
    the bias of the queries.
    """
    ours = flatten(ours)
    seen, worst = set(), 0.0
    for name, place, their_name, transposed in their_names(stacks):
        if their_name not in theirs:
            continue
        mine = np.asarray(ours[name] if place is None else ours[name][place])
        other = theirs[their_name].grad.numpy()
        other = other.T if transposed else other
        scale = np.linalg.norm(other)
        if their_name.endswith("key.bias"):
            query = theirs[their_name.replace("key.bias", "query.bias")]
            scale = np.linalg.norm(query.grad.numpy())
        found = np.linalg.norm(mine - other) / scale
        assert found <= BACKWARD, f"{their_name}: {found:.1e}"
        worst = max(worst, found)
        seen.add(their_name)
    assert seen == set(theirs)
    return worst


def their_inputs(torch, batch):
    """Ours to transformers' arguments; every row holds one segment."""
    as_tensor = partial(torch.tensor, dtype=torch.long)
    return {
        "input_ids": as_tensor(batch["tokens"]),
        "attention_mask": as_tensor(batch["mask"]),
        "token_type_ids": as_tensor(batch["types"]),
        "position_ids": as_tensor(batch["positions"]),
    }


def their_loss(torch, logits, labels):
    labels = torch.tensor(labels, dtype=torch.long)
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=-1,
        reduction="sum",
    )


INSIDE = {"output_hidden_states": True, "output_attentions": True}


def their_inside(outputs):
    """What torch's layers gave, as ours: leading axis B, then layers."""
    stacked = {"hidden_states": outputs.hidden_states, "attention": outputs.attentions}
    return {
        name: np.stack([layer.detach().numpy() for layer in layers], 1)
        for name, layers in stacked.items()
    }


def check_inside(ours, theirs, places, their_places):
    """Compare every layer over the real positions: (row, positions) of each segment."""

    def real(values, places):
        parts = [np.asarray(values)[row][..., where, :] for row, where in places]
        if values.ndim == 5:  # attention: from a segment's tokens to its own
            pairs = zip(parts, places, strict=True)
            parts = [part[..., where] for part, (_, where) in pairs]
        return [part.reshape(len(part), -1) for part in parts]

    for name in theirs:
        found = np.concatenate(real(ours[name], places), 1)
        wanted = np.concatenate(real(theirs[name], their_places), 1)
        assert found.shape == wanted.shape, name
        for layer, pair in enumerate(zip(found, wanted, strict=True)):
            assert error(*pair) <= FORWARD, f"{name} of layer {layer}"


def our_gradients(params, apply, batch, labels):
    def loss(params):
        outputs = apply(params, batch)
        weights = (labels >= 0).astype(jnp.float32)
        return cross_entropy(outputs["logits"], labels, weights).total, outputs

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, outputs), gradients = step(params)
    return outputs, gradients


def with_head(model, reads, torch_linear):
    """Our head over a loaded backbone, with the weights of torch's linear layer."""

    def make(rngs):
        return Head(Transformer(model.config, rngs), reads, labels, rngs)

    labels = torch_linear.out_features
    classifier = {
        "kernel": jnp.asarray(torch_linear.weight.detach().numpy().T),
        "bias": jnp.asarray(torch_linear.bias.detach().numpy()),
    }
    params = {"backbone": model.params, "classifier": classifier}
    return params, functional(make).apply


@pytest.fixture(scope="module")
def real(torch, minilm, make_batch, open_model):
    """MiniLM on real sentences: padded and packed batches, torch's hidden and grads."""
    from transformers import BertModel

    tokenizer = Tokenizer(minilm)
    frame = tokenizer.frame
    random = np.random.default_rng(0)
    segments, labels = [], []
    for sentence in SENTENCES:
        ids = [*frame.before, *tokenizer.text(sentence), *frame.after]
        segments.append((ids, 0))
        labels.append(random.integers(0, LABELS, len(ids)))
    padded_rows = [[number] for number in range(len(segments))]
    packed_rows = [[2, 3], [0, 1, 4], [5, 6, 7]]

    def made(rows, side="right"):
        batch = make_batch([[segments[n] for n in row] for row in rows], 64, side)
        targets = np.full(batch["tokens"].shape, -1)
        places = {}
        for number, row in enumerate(rows):
            for place, index in enumerate(row):
                where = np.flatnonzero(batch["segments"][number] == place + 1)
                targets[number, where] = labels[index]
                places[index] = (number, where)
        order = [places[index] for index in range(len(segments))]
        return SimpleNamespace(
            batch=batch,
            labels=targets,
            order=order,
            flat=lambda hidden: np.concatenate(
                [np.asarray(hidden)[row, where] for row, where in order]
            ),
        )

    padded, packed = made(padded_rows), made(packed_rows, "both")
    theirs = BertModel.from_pretrained(
        minilm, attn_implementation="eager", add_pooling_layer=False
    ).eval()
    torch.manual_seed(0)
    head = torch.nn.Linear(theirs.config.hidden_size, LABELS)
    outputs = theirs(**their_inputs(torch, padded.batch), **INSIDE)
    hidden = outputs.last_hidden_state
    their_loss(torch, head(hidden), padded.labels).backward()
    model = open_model(minilm)
    params, apply = with_head(model, "hidden", head)
    return SimpleNamespace(
        batches={"padded": padded, "packed": packed},
        hidden=padded.flat(hidden.detach().numpy()),
        inside=their_inside(outputs),
        model=model,
        theirs=dict(theirs.named_parameters()),
        head=head,
        ours={
            name: our_gradients(params, apply, each.batch, each.labels)
            for name, each in (("padded", padded), ("packed", packed))
        },
    )


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_hidden_states_of_a_real_bert_equal_those_of_torch(real, kind):
    outputs, _ = real.ours[kind]
    found = error(real.batches[kind].flat(outputs["hidden"]), real.hidden)
    print(f"MiniLM hidden states, {kind}: {found:.2e}")
    assert found <= FORWARD


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_every_layer_of_a_real_bert_equals_that_of_torch(real, kind):
    collect = tuple(real.inside)
    ours = jax.jit(partial(real.model.apply, collect=collect))(
        real.model.params, real.batches[kind].batch
    )
    places = real.batches[kind].order
    check_inside(ours, real.inside, places, real.batches["padded"].order)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_gradients_of_a_real_bert_equal_those_of_torch(real, kind):
    _, gradients = real.ours[kind]
    worst = check_gradients(gradients["backbone"], real.theirs, (6,))
    print(f"MiniLM gradients, {kind}: {worst:.2e}")
    ours = gradients["classifier"]
    assert error(ours["kernel"].T, real.head.weight.grad.numpy()) <= BACKWARD
    assert error(ours["bias"], real.head.bias.grad.numpy()) <= BACKWARD


def test_a_bert_with_pretraining_heads_loads_and_equals_torch(
    torch, shared_models, make_batch, open_model
):
    from transformers import BertModel

    folder = shared_models / "rxnfp-bert-pretraining"
    model = open_model(folder, pooler=True)
    random = np.random.default_rng(0)
    rows = [[(random.integers(14, 591, n), random.integers(0, 2, n))] for n in (31, 7)]
    batch = make_batch(rows, 31)
    theirs = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = theirs(**their_inputs(torch, batch))
    outputs = jax.jit(model.apply)(model.params, batch)
    mask = batch["mask"]
    hidden = wanted.last_hidden_state.numpy()
    assert error(outputs["hidden"][mask], hidden[mask]) <= FORWARD
    assert error(outputs["pooled"][:, 0], wanted.pooler_output.numpy()) <= FORWARD


# heads, width, activation, lengths of the rows, side of the padding, where depth is cut
SMALL = {
    "one-head-gelu": (1, 24, "gelu", (9, 1, 5), "right", ()),
    "three-heads-gelu-new": (3, 30, "gelu_new", (13, 7, 2), "left", (1,)),
    "many-heads-relu": (8, 32, "relu", (17, 16, 3), "right", (1,)),
    "four-heads-no-padding": (4, 20, "gelu", (11, 11), "right", ()),
    "two-heads-both-sides": (2, 26, "relu", (19, 6, 12), "both", ()),
}


@pytest.fixture(params=SMALL)
def small(request, torch, make_batch):
    """A config of transformers and a batch for it, with types."""
    from transformers import BertConfig

    heads, width, activation, lengths, side, splits = SMALL[request.param]
    config = BertConfig(
        vocab_size=61,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=2 * width + 3,
        max_position_embeddings=23,
        hidden_act=activation,
        layer_norm_eps=1e-6,
        num_labels=LABELS,
        attn_implementation="eager",
    )
    random = np.random.default_rng(heads)
    rows = [[(random.integers(1, 61, n), random.integers(0, 2, n))] for n in lengths]
    return config, make_batch(rows, max(lengths) + (side == "both")), splits


def saved(torch, kind, config, folder):
    """A torch model, every parameter random, biases too, written to a folder."""
    torch.manual_seed(1)
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(folder)
    return theirs


def test_every_layer_equals_that_of_torch(torch, small, tmp_path, open_model):
    from transformers import BertModel

    config, batch, splits = small
    theirs = saved(torch, BertModel, config, tmp_path)
    with torch.no_grad():
        wanted = their_inside(theirs(**their_inputs(torch, batch), **INSIDE))
    model = open_model(tmp_path, splits=splits)
    apply = jax.jit(partial(model.apply, collect=tuple(wanted)))
    places = [(row, np.flatnonzero(real)) for row, real in enumerate(batch["mask"])]
    check_inside(apply(model.params, batch), wanted, places, places)


def check_small(torch, theirs, small, model, reads, labels):
    """Logits and gradients of one small model, both sides with the same weights."""
    _, batch, _ = small
    params, apply = with_head(model, reads, theirs.classifier)
    logits = theirs(**their_inputs(torch, batch)).logits
    their_loss(torch, logits, labels).backward()
    outputs, gradients = our_gradients(params, apply, batch, labels)
    real = labels >= 0
    wanted = logits.detach().numpy().reshape(*labels.shape, LABELS)
    assert error(np.asarray(outputs["logits"])[real], wanted[real]) <= FORWARD
    named = dict(theirs.bert.named_parameters())
    check_gradients(gradients["backbone"], named, model.config.stacks)
    ours = gradients["classifier"]
    assert error(ours["kernel"].T, theirs.classifier.weight.grad.numpy()) <= BACKWARD
    assert error(ours["bias"], theirs.classifier.bias.grad.numpy()) <= BACKWARD


def test_token_classification_equals_that_of_torch(torch, small, tmp_path, open_model):
    from transformers import BertForTokenClassification

    config, batch, splits = small
    theirs = saved(torch, BertForTokenClassification, config, tmp_path)
    labels = np.random.default_rng(2).integers(0, LABELS, batch["tokens"].shape)
    labels = np.where(batch["mask"], labels, -1)
    model = open_model(tmp_path, splits=splits)
    check_small(torch, theirs, small, model, "hidden", labels)


# transformers pools the first position, so that only padding on the right compares.
@pytest.mark.parametrize(
    "small", [name for name in SMALL if SMALL[name][4] == "right"], indirect=True
)
def test_text_classification_equals_that_of_torch(torch, small, tmp_path, open_model):
    from transformers import BertForSequenceClassification

    config, batch, splits = small
    theirs = saved(torch, BertForSequenceClassification, config, tmp_path)
    labels = np.random.default_rng(2).integers(0, LABELS, (len(batch["tokens"]), 1))
    model = open_model(tmp_path, pooler=True, splits=splits)
    check_small(torch, theirs, small, model, "pooled", labels)
