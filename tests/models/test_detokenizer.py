"""Texts that grow: what was said of one is never taken back."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxlm.models.detokenizer import Detokenizer
from jaxlm.models.watch import Watch


def of_bytes():
    """GPT-2's way: bytes are letters of another alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: at for at, letter in enumerate(alphabet)}, [])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def of_fallback():
    """Sentencepiece's way: a byte that is in no piece is a token with its number."""
    names = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581a", ".", "x"]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {name: at for at, name in enumerate(names)}, [], byte_fallback=True
        )
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps)
    return made


def of_words():
    """A tokenizer that takes spaces away before what follows, where it may."""
    names = ["[UNK]", "do", "n't", ".", ",", "a", "##b"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({name: at for at, name in enumerate(names)})
    )
    made.decoder = decoders.WordPiece(cleanup=False)
    return made


@pytest.mark.parametrize("make", [of_bytes, of_fallback, of_words])
def test_what_was_said_is_never_taken_back(make):
    """Any tokens at all: most strings of random bytes are no letters."""
    made = make()
    made.add_special_tokens(["<s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", clean_up_tokenization_spaces=True
    )
    detokenizer = Detokenizer(tokenizer)
    random = np.random.default_rng(0)
    words = ["\u00e9\u4e2d.\n x", " a b n't .", "\U0001f600\u00e9"]
    for trial in range(300):
        tokens = random.integers(0, made.get_vocab_size(), 6).tolist()
        tokens += made.encode(words[trial % 3]).ids
        tokens += random.integers(0, made.get_vocab_size(), 4).tolist()
        said = ""
        for count in range(len(tokens) + 1):
            text = detokenizer.settled(tokens[:count])
            assert text.startswith(said) or said.startswith(text)
            said = max(said, text, key=len)
        assert detokenizer.text(tokens).startswith(said)


def test_a_letter_is_said_once_it_is_whole():
    made = of_bytes()
    detokenizer = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=made))
    tokens = made.encode("a\u4e2d").ids
    texts = [detokenizer.settled(tokens[:count]) for count in range(5)]
    assert texts == ["", "a", "a", "a", "a\u4e2d"]


@pytest.mark.parametrize("stop", ["\n", "x\n"])
def test_a_stop_string_at_the_very_end_is_found(stop):
    """Its last byte might have become another letter, but no more tokens come."""
    made = of_fallback()
    pieces: list[str] = []
    watch = Watch(
        Detokenizer(PreTrainedTokenizerFast(tokenizer_object=made)),
        1, (), (stop,), lambda _, text: pieces.append(text),
    )  # fmt: skip
    tokens = np.array([[257, 258, 10]])
    assert not watch.look(tokens, False).any()
    assert watch.look(tokens, True).all()
    found = watch.finished(0, tokens[0], np.zeros(3, np.float32))
    assert found.text == ".x\n".removesuffix(stop) == "".join(pieces)
    assert found.finish == "stop"
