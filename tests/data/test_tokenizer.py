"""Tokenizers as checkpoints bring them; real vocabularies."""

import json

import numpy as np
import pytest
from hypothesis import given

from jaxlm.data.tokenizer import Frame, Tokenizer
from tests.odd_words import WORDS


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return Tokenizer(minilm)


def test_the_frame_is_what_the_tokenizer_puts_around_a_text(tokenizer):
    assert tokenizer.frame == Frame(before=(101,), after=(102,))
    assert tokenizer.frame.length == 2


def test_text_becomes_ids_without_special_tokens(tokenizer):
    ids = tokenizer.text("Washington, D.C.")
    assert ids.dtype == np.int32
    assert ids.tolist() == [2899, 1010, 1040, 1012, 1039, 1012]


def test_each_token_says_which_word_it_came_from(tokenizer):
    pieces = tokenizer.words(["Ekeus", "heads"])
    assert pieces.words.tolist() == [0] * (len(pieces.ids) - 1) + [1]
    assert len(pieces.ids) > 2
    assert pieces.words.dtype == pieces.ids.dtype == np.int32


def test_truncation_that_the_file_asks_for_is_off(minilm, tokenizer):
    asked = json.loads((minilm / "tokenizer.json").read_text())["truncation"]
    assert asked["max_length"] < 1000
    assert len(tokenizer.text("word " * 1000)) == 1000
    assert len(tokenizer.words(["word"] * 1000).ids) == 1000


def test_padding_that_the_file_asks_for_is_off(minilm, tokenizer):
    asked = json.loads((minilm / "tokenizer.json").read_text())["padding"]
    assert asked["strategy"]["Fixed"] > 1
    assert len(tokenizer.text("word")) == 1


@pytest.mark.parametrize("word", ["\u200b", "\x00", "\ufffd", "\x07\u200d"])
def test_a_word_of_no_visible_character_yields_no_token(tokenizer, word):
    assert tokenizer.words(["a", word, "b"]).words.tolist() == [0, 2]


def test_words_that_all_yield_nothing_give_empty_arrays(tokenizer):
    pieces = tokenizer.words(["\u200b", "\x00"])
    assert len(pieces.ids) == len(pieces.words) == 0
    assert pieces.words.dtype == np.int32


def test_a_word_spelt_as_a_special_token_keeps_its_place(tokenizer):
    assert tokenizer.words(["a", "x[MASK]y"]).words.tolist() == [0, 1, 1, 1]


@given(words=WORDS)
def test_a_word_s_tokens_do_not_depend_on_its_neighbours(tokenizer, words):
    pieces = tokenizer.words(words)
    alone = [tokenizer.words([word]).ids.tolist() for word in words]
    assert pieces.ids.tolist() == [token for tokens in alone for token in tokens]
    assert pieces.words.tolist() == [
        place for place, tokens in enumerate(alone) for _ in tokens
    ]


def test_the_vocabulary_s_size_is_one_more_than_its_last_id(tokenizer):
    assert tokenizer.vocab_size == 30522


def test_a_saved_tokenizer_reads_back_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    again = Tokenizer(tmp_path / "new" / "folder")
    text = "She works for Acme Rockets GmbH in Köln 🚀 since 1998."
    assert again.frame == tokenizer.frame
    assert again.text(text).tolist() == tokenizer.text(text).tolist()


def test_a_directory_with_a_vocabulary_alone_is_converted(shared_models):
    folder = shared_models / "rxnfp-bert-pretraining"
    assert not (folder / "tokenizer.json").exists()
    tokenizer = Tokenizer(folder)
    vocabulary = (folder / "vocab.txt").read_text().splitlines()
    assert tokenizer.vocab_size == len(vocabulary)
    before, after = tokenizer.frame.before, tokenizer.frame.after
    assert [vocabulary[i] for i in (*before, *after)] == ["[CLS]", "[SEP]"]


def test_a_cased_vocabulary_keeps_case_where_its_config_says_so(
    shared_models, tmp_path
):
    vocabulary = shared_models / "tokenizers" / "bert-base-cased" / "vocab.txt"
    (tmp_path / "vocab.txt").write_bytes(vocabulary.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    names = vocabulary.read_text(encoding="utf-8").splitlines()
    assert [names[i] for i in Tokenizer(tmp_path).text("Paris paris")] == [
        "Paris",
        "par",
        "##is",
    ]


@pytest.fixture
def configured(minilm, tmp_path):
    """A directory with MiniLM's tokenizer.json and another tokenizer_config.json."""

    def make(**options):
        (tmp_path / "tokenizer.json").write_bytes(
            (minilm / "tokenizer.json").read_bytes()
        )
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
        return tmp_path

    return make


def test_tokenizer_config_wins_where_it_says_otherwise(configured, tokenizer, tmp_path):
    cased = Tokenizer(configured(do_lower_case=False, strip_accents=True))
    assert tokenizer.text("Ada")[0] != cased.text("Ada")[0]
    assert cased.text("ada").tolist() == tokenizer.text("ada").tolist()
    cased.save(tmp_path / "saved")
    assert Tokenizer(tmp_path / "saved").text("Ada").tolist() == (
        cased.text("Ada").tolist()
    )


def test_tokenizer_config_that_agrees_changes_nothing(configured, tokenizer):
    same = Tokenizer(configured(do_lower_case=True, model_max_length=9))
    assert same.serialised == tokenizer.serialised


@pytest.mark.parity
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_ids_equal_those_of_transformers_by_tokenizer_config(
    configured, torch, lower, name
):
    from transformers import AutoTokenizer

    folder = configured(do_lower_case=lower, tokenizer_class=name)
    text = "Ada Lovelace left Zürich for 東京."
    theirs = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)
    assert Tokenizer(folder).text(text).tolist() == theirs["input_ids"]
