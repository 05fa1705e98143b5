"""Published and trained checkpoints, one call each, against transformers.

1e-4 as in ``test_families``: twelve layers err by a few 1e-6.
"""

import jax
import numpy as np
import pytest

from jaxlm.models.pretrained import load, logits, make_batch
from tests.models.parity import error

pytestmark = pytest.mark.parity

LIMIT = 1e-4
REACTIONS = ("rxnfp-bert-pretraining", "rxnmapper-albert")
# Reactants, an arrow, a product; the vocabulary is of atoms and bonds.
LENGTHS = (31, 19, 8)
FIRST_WORD = 15  # after padding, marks and what is unused


@pytest.fixture(scope="module")
def masked(torch, shared_models):
    """For a checkpoint: tokens of which some are masked, and both sides' logits."""
    done = {}

    def make(name):
        if name not in done:
            from transformers import AutoModelForMaskedLM

            folder = shared_models / name
            words = (folder / "vocab.txt").read_text().split()
            tokens, mask = rows(words)
            theirs = AutoModelForMaskedLM.from_pretrained(
                folder, attn_implementation="eager"
            ).eval()
            with torch.no_grad():
                wanted = theirs(
                    input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)
                ).logits.numpy()
            done[name] = words, tokens, mask, logits(str(folder), tokens, mask), wanted
        return done[name]

    return make


def rows(words):
    """Reactions of several lengths, padded on the right, every fifth token masked."""
    reaction = "C C ( = O ) O . O C C >> C C ( = O ) O C C . O c 1 c c c c c 1".split()
    ids = [words.index(word) for word in reaction]
    tokens = np.full((len(LENGTHS), max(LENGTHS)), words.index("[PAD]"))
    for row, length in enumerate(LENGTHS):
        inner = ids[: length - 2]
        inner[2::5] = [words.index("[MASK]")] * len(inner[2::5])
        start, end = words.index("[CLS]"), words.index("[SEP]")
        tokens[row, :length] = [start, *inner, end]
    return tokens, np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


@pytest.mark.parametrize("name", REACTIONS)
def test_masked_language_logits_equal_those_of_torch(masked, name):
    _, _, mask, ours, theirs = masked(name)
    found = error(np.asarray(ours)[mask], theirs[mask])
    print(f"{name}: logits {found:.1e}")
    assert found <= LIMIT


@pytest.mark.parametrize("name", REACTIONS)
def test_masked_tokens_are_recovered_alike(masked, name):
    words, tokens, mask, ours, theirs = masked(name)
    hidden = tokens == words.index("[MASK]")
    ours, theirs = np.asarray(ours), theirs
    assert hidden.sum() >= 10
    assert (ours.argmax(-1)[mask] == theirs.argmax(-1)[mask]).all()
    # A trained model knows what follows an atom: guesses are words, not one alone.
    guesses = ours.argmax(-1)[hidden]
    assert (guesses >= FIRST_WORD).all() and len(set(guesses)) > 1


def test_a_small_trained_gpt2_equals_torch_with_padding_on_either_side(
    torch, shared_models
):
    from transformers import AutoModelForCausalLM

    folder = shared_models / "gpt-nano-sort"
    random = np.random.default_rng(0)
    tokens, places = random.integers(0, 3, (3, 11)), np.arange(11)
    mask = np.stack([places < 11, places < 7, places >= 4])
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    with torch.no_grad():
        wanted = theirs.eval()(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
        ).logits.numpy()
    ours = np.asarray(logits(str(folder), tokens, mask))
    assert error(ours[mask], wanted[mask]) <= LIMIT


def test_a_bare_model_gives_the_hidden_states_of_torch(torch, minilm):
    from transformers import AutoModel

    model = load(str(minilm))
    random = np.random.default_rng(0)
    tokens = random.integers(1000, 2000, (2, 21))
    mask = np.arange(21) < np.array([[21], [13]])
    batch = make_batch(model.config, tokens, mask, "minilm")
    ours = jax.jit(model.apply)(model.params, batch)
    theirs = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = theirs(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)
        ).last_hidden_state.numpy()
    assert model.head is None and "logits" not in ours
    assert error(np.asarray(ours["hidden"])[mask], wanted[mask]) <= LIMIT
