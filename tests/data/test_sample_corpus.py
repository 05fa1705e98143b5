"""The sample corpus keeps the promises of docs/corpus.md."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from tokenizers import Tokenizer

Record = dict[str, Any]

SIZES = {"train": 400, "validation": 100, "test": 100}
REGISTERS = "news sport finance science travel reviews email chat".split()
TYPES = ("PER", "LOC", "ORG", "MISC")
FOLDER = resources.files("jaxlm.data") / "sample"
TINY = resources.files("jaxlm.models") / "built_in" / "tiny"


def read(split: str) -> list[Record]:
    lines = (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


SPLITS = {split: read(split) for split in SIZES}
RECORDS = [record for records in SPLITS.values() for record in records]


def entities(record: Record) -> Iterator[tuple[list[str], str]]:
    """The tokens and the type of each entity of an IOB2-labelled record."""
    words: list[str] = []
    kind = ""
    pairs = zip(record["tokens"], record["labels"], strict=True)
    for token, label in [*pairs, ("", "O")]:
        if words and not label.startswith("I-"):
            yield words, kind
            words = []
        if label != "O":
            words.append(token)
            kind = label[2:]


def mentions(records: list[Record]) -> list[tuple[str, str]]:
    """Case-folded surface and type of every entity."""
    return [
        (" ".join(words).casefold(), kind)
        for record in records
        for words, kind in entities(record)
    ]


def mask(record: Record) -> tuple[str, ...]:
    """The case-folded tokens with each entity replaced by one mark."""
    pairs = zip(record["tokens"], record["labels"], strict=True)
    return tuple(
        token.casefold() if label == "O" else "<entity>"
        for token, label in pairs
        if not label.startswith("I-")
    )


@pytest.mark.parametrize("split", SIZES)
def test_each_split_has_its_size(split):
    assert len(SPLITS[split]) == SIZES[split]


def test_each_register_has_75_sentences_50_of_them_in_train():
    whole = Counter(record["register"] for record in RECORDS)
    train = Counter(record["register"] for record in SPLITS["train"])
    assert whole == dict.fromkeys(REGISTERS, 75)
    assert train == dict.fromkeys(REGISTERS, 50)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_splits_have_12_or_13_sentences_of_a_register(split):
    counts = Counter(record["register"] for record in SPLITS[split])
    assert set(counts) == set(REGISTERS)
    assert set(counts.values()) <= {12, 13}


def test_every_record_has_the_same_fields_and_its_own_id():
    fields = {"id", "register", "text", "tokens", "labels"}
    assert all(set(record) == fields for record in RECORDS)
    assert all(r["id"].rpartition("-")[0] == r["register"] for r in RECORDS)
    assert len({record["id"] for record in RECORDS}) == len(RECORDS)


def is_iob2(labels: list[str]) -> bool:
    allowed = {"O", *(f"{mark}-{kind}" for mark in "BI" for kind in TYPES)}
    return set(labels) <= allowed and all(
        label[0] != "I" or previous in (f"B-{label[2:]}", label)
        for previous, label in zip(["O", *labels], labels, strict=False)
    )


def is_tokenisation(tokens: list[str], text: str) -> bool:
    """Whether the tokens, in order, are all of the text but its white space."""
    position = 0
    for token in tokens:
        start = text.find(token, position)
        if not token or start < 0 or text[position:start].strip():
            return False
        position = start + len(token)
    return position == len(text) and not any(" " in token for token in tokens)


def test_every_token_has_one_label():
    wrong = [r["id"] for r in RECORDS if len(r["tokens"]) != len(r["labels"])]
    assert wrong == []


def test_labels_are_iob2_over_the_four_types():
    assert [r["id"] for r in RECORDS if not is_iob2(r["labels"])] == []


def test_tokens_and_white_space_make_up_the_text_in_order():
    wrong = [r["id"] for r in RECORDS if not is_tokenisation(r["tokens"], r["text"])]
    assert wrong == []


def test_no_sentence_repeats_once_its_entities_are_masked():
    counts = Counter(mask(record) for record in RECORDS)
    assert [words for words, count in counts.items() if count > 1] == []


def test_no_masked_five_gram_stands_in_more_than_one_percent_of_sentences():
    counts: Counter[tuple[str, ...]] = Counter()
    for words in map(mask, RECORDS):
        counts.update({words[i : i + 5] for i in range(len(words) - 4)})
    limit = len(RECORDS) // 100
    assert {words: n for words, n in counts.items() if n > limit} == {}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_at_least_40_percent_of_held_out_entities_are_unseen_in_train(split):
    train = set(mentions(SPLITS["train"]))
    held_out = mentions(SPLITS[split])
    unseen = sum(mention not in train for mention in held_out)
    assert unseen >= 0.4 * len(held_out)


@pytest.mark.parametrize("split", SIZES)
def test_each_type_is_at_least_12_percent_of_the_entities_of_a_split(split):
    counts = Counter(kind for _, kind in mentions(SPLITS[split]))
    assert set(counts) == set(TYPES)
    assert min(counts.values()) >= 0.12 * counts.total()


@pytest.mark.parametrize("split", SIZES)
def test_at_least_a_tenth_of_the_sentences_of_a_split_have_no_entity(split):
    # 10 % of 600 lines: the corpus as a whole has at least 60.
    free = sum(set(record["labels"]) == {"O"} for record in SPLITS[split])
    assert free >= SIZES[split] // 10


def test_at_least_20_surfaces_carry_more_than_one_type():
    kinds = defaultdict(set)
    for surface, kind in mentions(RECORDS):
        kinds[surface].add(kind)
    assert sum(len(found) > 1 for found in kinds.values()) >= 20


def test_at_least_10_surfaces_are_also_written_as_common_words():
    names = {surface for surface, _ in mentions(RECORDS)}
    common = {
        token.casefold()
        for record in RECORDS
        for token, label in zip(record["tokens"], record["labels"], strict=True)
        if label == "O"
    }
    assert len(names & common) >= 10


def test_at_least_20_entities_are_written_in_lower_case():
    found = [" ".join(words) for record in RECORDS for words, _ in entities(record)]
    assert sum(surface.islower() for surface in found) >= 20


def test_at_least_20_organisations_are_four_tokens_or_longer():
    long = [
        words
        for record in RECORDS
        for words, kind in entities(record)
        if kind == "ORG" and len(words) >= 4
    ]
    assert len(long) >= 20


def test_the_tiny_model_has_as_many_embeddings_as_its_vocabulary():
    pieces = (TINY / "vocab.txt").read_text("utf-8").splitlines()
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_str((TINY / "tokenizer.json").read_text("utf-8"))
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.get_vocab() == {piece: i for i, piece in enumerate(pieces)}
    assert config["vocab_size"] == len(pieces)


def test_the_tiny_vocabulary_knows_every_token_of_the_corpus():
    tokenizer = Tokenizer.from_str((TINY / "tokenizer.json").read_text("utf-8"))
    unknown = tokenizer.token_to_id("[UNK]")
    for record in RECORDS:
        encoding = tokenizer.encode(record["tokens"], is_pretokenized=True)
        assert unknown not in encoding.ids
