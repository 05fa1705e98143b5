"""Generation without a peer: what is drawn, what ends a sequence, what is refused."""

import gc
import json
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxlm.core.errors import UserError
from jaxlm.core.trees import flatten
from jaxlm.models.generate import Generator, generate
from jaxlm.models.generation import Generation
from jaxlm.models.pretrained import load, make_batch
from jaxlm.models.prompts import encode
from jaxlm.models.sampling import LEAST, Sampling, draw, penalise, restrict

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": len(LETTERS),
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.5,
    "eos_token_id": None,
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}.{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small GPT-2 whose tokens are letters; its weights are random."""
    folder = tmp_path_factory.mktemp("letters")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    model = tokenizers.models.BPE(vocabulary, [], fuse_unk=False)
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Fuse()
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(f"random:{folder}")


@pytest.fixture(scope="module")
def run(model):
    """``run(prompts, **options)``: the only sequence of each prompt."""

    def one(prompts, **options):
        return [found[0] for found in generate(model, prompts, **options)]

    return one


def test_greedy_tokens_are_the_most_likely_by_the_whole_sequence(model, run):
    """The cache against a forward pass without one, with ragged prompts."""
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2]]
    apply = jax.jit(model.apply)
    for prompt, found in zip(prompts, run(prompts, max_new_tokens=12), strict=True):
        ids = prompt + found.tokens
        batch = make_batch(model.config, [ids], None, "here")
        logits = np.asarray(apply(model.params, batch)["logits"][0])
        rows = logits[len(prompt) - 1 : -1]
        assert rows.argmax(-1).tolist() == found.tokens
        expected = jax.nn.log_softmax(rows)[np.arange(12), found.tokens]
        # fp32 rounding of another order of summation.
        np.testing.assert_allclose(found.logprobs, expected, atol=1e-4)
        assert found.score == pytest.approx(sum(found.logprobs))
        assert found.finish == "length"


def test_a_sequence_does_not_hang_on_the_others_in_its_batch(run):
    prompts = [[1, 2, 3], [4], [5, 6]]
    options = {"temperature": 1.3, "top_p": 0.9, "seed": 5, "max_new_tokens": 10}
    together = run(prompts, **options)
    assert run(prompts[:1], **options)[0].tokens == together[0].tokens
    assert len({tuple(found.tokens) for found in together}) == 3


def test_the_same_seed_draws_the_same_and_another_does_not(model):
    draws = partial(
        generate, model, ["abc"], temperature=1.0, samples=3, max_new_tokens=10
    )
    first, again, other = draws(seed=1)[0], draws(seed=1)[0], draws(seed=2)[0]
    assert first == again
    assert first != other
    assert len({tuple(found.tokens) for found in first}) == 3


def test_drawn_tokens_follow_the_distribution_of_the_model(model):
    """Pearson's chi-squared over the first token of 4,096 samples."""
    samples = 4096
    found = generate(
        model, [[7, 7]], samples=samples, temperature=1.5, max_new_tokens=1
    )[0]
    counts = np.bincount([each.tokens[0] for each in found], minlength=len(LETTERS))
    batch = make_batch(model.config, [[7, 7]], None, "here")
    logits = jax.jit(model.apply)(model.params, batch)["logits"][0, -1]
    expected = np.asarray(jax.nn.softmax(logits / 1.5)) * samples
    often = expected >= 5
    rest = counts[~often].sum(), max(expected[~often].sum(), 1e-9)
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    statistic += (rest[0] - rest[1]) ** 2 / rest[1]
    # Of so many degrees of freedom it is above this once in 10,000 seeds; ours is one.
    degrees = often.sum()
    assert statistic < degrees + 4 * np.sqrt(2 * degrees) + 8


def allowed(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Which tokens may be drawn, one at a time and in f64."""
    shares = np.exp((logits - logits.max()) / temperature)
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")
    order = order[: top_k or len(order)]
    shares = shares / shares[order].sum()
    kept, total = [], 0.0
    for token in order:
        if kept and (total >= top_p or shares[token] < min_p * shares[order[0]]):
            break
        kept.append(token)
        total += shares[token]
    return set(kept)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"top_k": 1},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"temperature": 0.5, "top_p": 0.9},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.7, "min_p": 0.3},
        {},
    ],
    ids=str,
)
def test_only_the_tokens_that_are_left_may_be_drawn(options):
    logits = np.random.default_rng(0).normal(size=(4, 20)) * 2
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    sampling = Sampling(
        **{k: jnp.asarray(v) for k, v in values.items()}, repetition_penalty=1
    )
    found = np.asarray(restrict(jnp.asarray(logits, jnp.float32), sampling))
    for row, before in zip(found, logits, strict=True):
        kept = set(np.flatnonzero(row > LEAST))
        assert kept == allowed(before, **options)
        np.testing.assert_allclose(
            row[list(kept)], before[list(kept)] / values["temperature"], rtol=1e-6
        )


def test_what_may_not_be_drawn_is_never_drawn():
    logits = jnp.where(jnp.arange(8)[None] == 2, 0.0, LEAST)
    keys = jax.random.split(jax.random.key(0), 64)
    tokens = draw(jnp.broadcast_to(logits, (64, 8)), keys)
    assert (np.asarray(tokens) == 2).all()


def test_a_penalty_lowers_what_was_seen_on_either_side_of_zero():
    logits = jnp.asarray([[2.0, -2.0, 3.0, -3.0]])
    seen = jnp.asarray([[True, True, False, False]])
    assert penalise(logits, seen, jnp.float32(2)).tolist() == [[1.0, -4.0, 3.0, -3.0]]


def test_a_repetition_penalty_ends_a_loop(run):
    plain = run([[1, 1, 1]], max_new_tokens=30)[0].tokens
    varied = run([[1, 1, 1]], max_new_tokens=30, repetition_penalty=1e6)[0].tokens
    assert len(set(varied)) == min(30, len(LETTERS)) - 1 or len(set(varied)) > len(
        set(plain)
    )


def test_a_stop_token_ends_a_sequence_and_is_its_last(run):
    whole = run([[5, 3]], max_new_tokens=20)[0].tokens
    stop = whole[4]
    found = run([[5, 3]], max_new_tokens=20, stop_tokens=(stop,))[0]
    assert found.tokens == whole[: whole.index(stop) + 1]
    assert found.finish == "stop"
    assert len(found.logprobs) == len(found.tokens)


def test_an_end_outside_of_the_vocabulary_is_never_met(tmp_path):
    """GPT-2's 50256 stays in the config.json of many a smaller one."""
    config = json.dumps(CONFIG | {"eos_token_id": 50256})
    (tmp_path / "config.json").write_text(config)
    [[found]] = generate(load(f"random:{tmp_path}"), [[1]], max_new_tokens=2)
    assert found.finish == "length"


def test_a_stop_string_ends_a_text_before_it(run):
    whole = run(["abc"], max_new_tokens=30, temperature=1.0)[0].text
    stop = whole[11:13]
    at = whole.index(stop)
    found = run(["abc"], max_new_tokens=30, temperature=1.0, stop=(stop,))[0]
    assert found.text == whole[:at]
    assert found.finish == "stop"
    # The tokens reach the end of the string, with which the text was cut.
    assert len(found.tokens) == at + len(stop)


def test_streamed_pieces_are_the_text_and_come_before_its_end(model):
    pieces = [[], []]
    prompts = ["abc", "hello"]
    options = {"max_new_tokens": 40, "temperature": 1.0}
    found = generate(
        model, prompts, stream=lambda n, text: pieces[n].append(text), **options
    )
    for mine, (generated,) in zip(pieces, found, strict=True):
        assert "".join(mine) == generated.text
        assert len(mine) > 2
    assert found == generate(model, prompts, **options)


def test_nothing_of_a_stop_string_is_streamed(model, run):
    options = {"max_new_tokens": 30, "temperature": 1.0}
    stop = run(["abc"], **options)[0].text[7:10]
    pieces = []
    found = generate(
        model,
        ["abc"],
        stream=lambda _, text: pieces.append(text),
        stop=(stop,),
        **options,
    )
    assert "".join(pieces) == found[0][0].text
    assert stop not in "".join(pieces)


def test_a_special_token_as_a_stop_string_ends_a_sequence(folder, run, tmp_path):
    """Texts have no special tokens, so that no text would ever have the string."""
    ids = [0, 1, 2]
    whole = run([ids], max_new_tokens=20, temperature=1.0)[0].tokens
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["<end>"] = vocabulary.pop(LETTERS[whole[4]])
    made = tokenizers.Tokenizer.from_str(json.dumps(state))
    made.add_special_tokens(["<end>"])
    made.save(str(tmp_path / "tokenizer.json"))
    other = load(f"random:{tmp_path}")
    stopped = whole[: whole.index(whole[4]) + 1]
    options = {"max_new_tokens": 20, "temperature": 1.0, "stop": ("<end>",)}
    [[found]] = generate(other, [ids], **options)
    assert found.tokens == stopped and found.finish == "stop"
    assert "<end>" not in found.text
    assert generate(other, [ids], max_new_tokens=4, stop=("<end>",), beams=2)[0]
    with pytest.raises(UserError, match="<end> is a special token"):
        generate(other, [ids], stop=("a<end>",))


def test_a_conversation_goes_through_the_chat_template(model):
    messages = [{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]
    assert encode(model, messages, "here") == encode(model, "ab.c.", "here")


def test_beams_are_sorted_and_better_than_greedy(model, run):
    beams = generate(
        model, ["abc"], beams=4, samples=4, max_new_tokens=8, length_penalty=0.0
    )[0]
    scores = [each.score for each in beams]
    assert scores == sorted(scores, reverse=True)
    greedy = run(["abc"], max_new_tokens=8)[0]
    # Without a length penalty a beam's score is its log-probability.
    assert scores[0] >= greedy.score - 1e-4
    assert len({tuple(each.tokens) for each in beams}) == 4


def test_programs_are_compiled_once_for_a_bucket_of_shapes(model):
    generator = Generator(model)
    for length, most in ((3, 5), (9, 60), (16, 64)):
        generator.run([[1] * length], Generation(max_new_tokens=most))
    assert generator.first._cache_size() == 1
    assert generator.on._cache_size() == 1


def test_token_ids_may_be_an_array(run):
    assert run([np.array([1, 2])], max_new_tokens=3) == run([[1, 2]], max_new_tokens=3)


def test_no_prompts_give_nothing(model):
    assert generate(model, []) == []


REFUSED = {
    "more than the positions": (([1] * 120,), {}, "128 positions"),
    "outside of the vocabulary": (([99],), {}, "vocabulary"),
    "endless tokens": ((), {"max_new_tokens": 2**31}, "1 to 2147483647"),
    "endless samples": (
        (),
        {"samples": 2**31 - 1, "temperature": 1.0},
        "this device has",
    ),
    "endless beams": ((), {"beams": 2**31 - 1}, "at most 14, half"),
    "endless stop": ((), {"stop_tokens": (5, 28)}, "stop_tokens=28.*0 to 27"),
    "a negative stop": ((), {"stop_tokens": (-1,)}, "stop_tokens=.-1"),
    "endless candidates": ((), {"top_k": 2**31}, "top_k=2147483648"),
    "a seed of many bits": ((), {"seed": 2**32}, "0 to 4294967295"),
    "a negative seed": ((), {"seed": -1}, "seed=-1"),
    "no number": ((), {"temperature": float("nan")}, "temperature=nan"),
    "an infinite one": ((), {"temperature": float("inf")}, "temperature=inf"),
    "zero, as a device sees it": ((), {"temperature": 1e-50}, "temperature=1e-50"),
    "an endless penalty": ((), {"length_penalty": float("-inf")}, "length_penalty"),
    "text for a number": ((), {"top_p": "0.5"}, "top_p='0.5'"),
    "a fraction for a count": ((), {"samples": 1.5}, "samples=1.5"),
    "true for a count": ((), {"beams": True}, "beams=True"),
    "a string for strings": ((), {"stop": "abc"}, "stop='abc'"),
    "a negative token": (([-1],), {}, "vocabulary"),
    "no token": (([],), {}, "needs at least one"),
    "a fraction": (([1, 2.5],), {}, "prompt 0: 2.5 is no token id"),
    "a truth": (([True],), {}, "True is no token id"),
    "a text among tokens": (([1, "2"],), {}, "'2' is no token id"),
    "tokens and messages": (([1, {"role": "a", "content": "b"}],), {}, "message 0"),
    "a message without a role": (([{"content": "b"}],), {}, "needs role and content"),
    "parts of a content": (([{"role": "a", "content": [1]}],), {}, "both strings"),
    "a message alone": (({"role": "a", "content": "b"},), {}, "is not allowed; a text"),
    "half of a letter": (("a\ud800",), {}, "character 2"),
    "a number": ((7,), {}, "prompt 0: 7 is not allowed"),
    "no new tokens": ((), {"max_new_tokens": 0}, "max_new_tokens=0"),
    "below zero": ((), {"temperature": -1.0}, "temperature=-1.0"),
    "no probability": ((), {"top_p": 0.0}, "top_p=0.0"),
    "an empty stop": ((), {"stop": ("",)}, "stop="),
    "drawn beams": (
        (),
        {"beams": 2, "temperature": 1.0},
        "a beam search draws nothing",
    ),
    "greedy samples": ((), {"samples": 2}, "would all be the same"),
    "a stop for beams": ((), {"beams": 2, "stop": ("a",)}, "cannot stream"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_generated_is_refused(model, name):
    prompts, options, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        generate(model, list(prompts) or ["a"], **({"max_new_tokens": 16} | options))


def test_prompts_are_several_and_options_are_given_once(model):
    with pytest.raises(UserError, match="write \\[prompt\\] for one"):
        generate(model, "abc")
    with pytest.raises(UserError, match="temperature: beside a Generation"):
        generate(model, ["abc"], Generation(), temperature=1.0)


def test_an_encoder_decoder_is_as_long_as_the_memory(tmp_path):
    """Its positions are relative and have no end."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = {"model_type": "t5", "vocab_size": 32, "decoder_start_token_id": 0}
    config |= {"architectures": ["T5ForConditionalGeneration"], "eos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    model = load(f"random:{tmp_path}")
    with pytest.raises(UserError, match="need .* GiB, and this device has"):
        generate(model, [[1]], max_new_tokens=2**31 - 1)


def test_all_tokens_may_be_drawn_with_all_probability():
    """Even those beyond the place where a rounded sum reaches 1."""
    # 312 of which come after a sum of 1 by XLA on a CPU.
    tail = jnp.linspace(-12, -12.5, 30_000)
    logits = jnp.concatenate([jnp.zeros(3000), tail])[None]
    ones = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    sampling = Sampling(
        top_k=0, min_p=0.0, **{k: jnp.float32(v) for k, v in ones.items()}
    )
    assert (restrict(logits, sampling) == logits).all()


def test_parameters_are_held_once_where_a_model_is_only_to_generate(folder):
    model = load(f"random:{folder}")
    kernels = flatten(model.params)
    read = [weakref.ref(leaf) for name, leaf in kernels.items() if "mlp" in name]
    del kernels
    generator = Generator(model)
    del model
    gc.collect()
    assert read and not any(leaf() for leaf in read)
    assert generator.run([[1]], Generation(max_new_tokens=2))


def test_an_encoder_is_refused():
    with pytest.raises(UserError, match="cannot generate"):
        generate(load("random:tiny"), [[1]])


def test_a_model_without_a_tokenizer_generates_tokens_and_refuses_texts(
    folder, tmp_path
):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model = load(f"random:{tmp_path}")
    found = generate(model, [[1, 2]], max_new_tokens=3)[0][0]
    assert len(found.tokens) == 3 and found.text is None
    with pytest.raises(UserError, match="no tokenizer"):
        generate(model, ["ab"])


def test_every_input_of_six_letters_is_sorted(shared_models):
    """All 729 inputs of a real small GPT, trained to sort."""
    model = load(str(shared_models / "gpt-nano-sort"))
    inputs = np.stack(np.meshgrid(*[np.arange(3)] * 6), -1).reshape(-1, 6)
    found = generate(model, inputs.tolist(), max_new_tokens=6)
    tokens = np.array([each.tokens for (each,) in found])
    assert len(tokens) == 729
    np.testing.assert_array_equal(tokens, np.sort(inputs, axis=1))
