"""Generated tokens against transformers': greedily and by beams, token for token."""

from dataclasses import replace

import numpy as np
import pytest

from jaxlm.models.generate import generate
from jaxlm.models.perplexity import scores
from jaxlm.models.pretrained import load
from tests.models.families import CASES
from tests.models.test_families import build

pytestmark = pytest.mark.parity

FAMILIES = (
    "GPT2-causal",
    "GPTNeoX-causal",
    "Llama-llama3",
    "Mistral-causal",
    "Qwen2-sliding",
    "Qwen3-causal",
    "Gemma2-caps",
    "Gemma3-pattern",
    "T5-relu",
    "MT5-gated",
)
STOPS = (7, 11)
LENGTHS = (9, 4, 13)
SEARCHES = {
    "greedy": ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    "beams": (
        {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 2},
        {"beams": 3, "length_penalty": 2.0, "samples": 2},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, torch, tmp_path_factory):
    """A model of transformers, ours, and prompts of several lengths."""
    case = CASES[request.param]
    if "T5" in case.model:
        # The cache of transformers 5.24 has as many layers as the encoder.
        more = {"num_decoder_layers": 2, "decoder_start_token_id": 0}
        case = replace(case, config={**case.config, **more})
    folder = tmp_path_factory.mktemp("model")
    theirs = build(torch, case, folder)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 61, length).tolist() for length in LENGTHS]
    return theirs, load(str(folder)), prompts


def theirs_generate(torch, theirs, prompts, **options):
    """Sequences of transformers, prompts padded on the left (T5's encoder: right)."""
    both = theirs.config.is_encoder_decoder
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        part = slice(0, len(prompt)) if both else slice(longest - len(prompt), None)
        ids[row, part], mask[row, part] = torch.tensor(prompt), 1
    found = theirs.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=list(STOPS),
        pad_token_id=0,
        **options,
    )
    rows = found[:, 1 if both else longest :].tolist()
    return [row[: end_of(row)] for row in rows]


def end_of(tokens):
    ends = [place + 1 for place, token in enumerate(tokens) if token in STOPS]
    return min(ends, default=len(tokens))


@pytest.mark.parametrize("search", SEARCHES)
def test_sequences_equal_those_of_transformers(torch, pair, search):
    theirs, ours, prompts = pair
    their_options, our_options = SEARCHES[search]
    wanted = theirs_generate(torch, theirs, prompts, **their_options)
    found = generate(ours, prompts, max_new_tokens=20, stop_tokens=STOPS, **our_options)
    assert [each.tokens for row in found for each in row] == wanted


def test_perplexity_equals_that_of_transformers_with_and_without_stride(
    torch, tmp_path
):
    theirs = build(torch, CASES["Llama-causal"], tmp_path)
    ours = load(str(tmp_path))
    tokens = np.random.default_rng(1).integers(3, 61, 50).tolist()
    for stride in (None, 5):
        total, count = 0.0, 0
        for window, score in scores(ours, tokens, 12, stride):
            ids = torch.tensor([tokens[window.start : window.stop]])
            labels = ids.clone()
            labels[:, : -window.scored] = -100
            with torch.no_grad():
                loss = theirs(ids, labels=labels).loss.item()
            # A mean over the tokens that are scored.
            assert score.total == pytest.approx(loss * window.scored, rel=1e-5)
            total, count = total + loss * window.scored, count + window.scored
        assert count == (49 if stride else 45)
