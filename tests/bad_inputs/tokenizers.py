"""Tokenizers: no vocabulary, ids beyond the embedding, options of another type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.cases import Case, own_model

LIBRARY, OPTIONS = "tokenizer.json", "tokenizer_config.json"
VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"


def edited(change: Callable[[Any], Any]) -> Callable[[Path], list[str]]:
    """The tiny model's tokenizer.json, changed."""

    def make(folder: Path) -> list[str]:
        model = own_model(folder)
        content = json.loads((model / LIBRARY).read_text())
        change(content)
        (model / LIBRARY).write_text(json.dumps(content))
        return trained_from(model)

    return make


def files(**contents: str | bytes | None) -> Callable[[Path], list[str]]:
    """The tiny model with other files, ``__`` for a dot; None: without it."""

    def make(folder: Path) -> list[str]:
        model = own_model(folder)
        for name, content in contents.items():
            path = model / name.replace("__", ".")
            path.unlink(missing_ok=True)
            if content is not None:
                data = content.encode() if isinstance(content, str) else content
                path.write_bytes(data)
        return trained_from(model)

    return make


def trained_from(model: Path) -> list[str]:
    return [
        f"--config.model.pretrained=random:{model}",
        "--config.data.train=sample:ner[:4]",
    ]


def word(id: Any) -> Callable[[Path], list[str]]:
    return edited(lambda content: content["model"]["vocab"].update(zzz=id))


def frame(id: int) -> Callable[[Path], list[str]]:
    """The id of [CLS] that is put before each text."""
    return edited(lambda content: content["post_processor"].update(cls=["[CLS]", id]))


def vocabulary(text: str | bytes, **more: str) -> Callable[[Path], list[str]]:
    return files(tokenizer__json=None, vocab__txt=text, **more)


BEYOND = "the embedding 2000 rows; take the model's own tokenizer"
PATTERN = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}
TOKENIZERS = [
    ("an id beyond the embedding", word(5000), f"ids up to 5000, {BEYOND}"),
    ("the greatest id", word(2**32 - 1), f"ids up to 4294967295, {BEYOND}"),
    ("a frame beyond the embedding", frame(99_999), f"ids up to 99999, {BEYOND}"),
    ("an id too large", word(2**32), "not a tokenizer"),
    ("a negative id", word(-1), "not a tokenizer"),
    ("a fraction for an id", word(1.5), "not a tokenizer"),
    ("text for an id", word("5"), "not a tokenizer"),
    ("no vocabulary", edited(lambda content: content["model"].update(vocab={})),
     "is its vocabulary whole?"),
    ("special tokens alone",
     edited(lambda content: content["model"].update(
         vocab={name: id for name, id in content["model"]["vocab"].items() if id < 5})),
     "knows special tokens alone"),
    ("no model", edited(lambda content: content.pop("model")), "not a tokenizer"),
    ("an unknown model", edited(lambda content: content["model"].update(type="X")),
     "not a tokenizer"),
    ("a broken pattern",
     edited(lambda content: content.update(pre_tokenizer=PATTERN | {"invert": False})),
     "not a tokenizer"),
    ("cut off", files(tokenizer__json="{"), "tokenizer.json: not a tokenizer"),
    ("nothing", files(tokenizer__json=""), "tokenizer.json: not a tokenizer"),
    ("a list", files(tokenizer__json="[]"), "tokenizer.json: not a tokenizer"),
    ("endless nesting", files(tokenizer__json="[" * 100_000), "not a tokenizer"),
    ("binary", files(tokenizer__json=bytes(range(256))), "tokenizer.json: "),
    ("broken options", files(tokenizer_config__json="{"), f"{OPTIONS}:1:2: broken"),
    ("a list of options", files(tokenizer_config__json="[]"), "is not a JSON object"),
    ("an option of text", files(tokenizer_config__json='{"do_lower_case": "no"}'),
     "do_lower_case is 'no'; true or false"),
    ("no tokenizer", files(tokenizer__json=None, vocab__txt=None), "no tokenizer"),
    ("an empty vocabulary", vocabulary(""), "is its vocabulary whole?"),
    ("a vocabulary without [UNK]", vocabulary("a\nb\n"), "is its vocabulary whole?"),
    ("a vocabulary of latin-1", vocabulary(b"caf\xe9\n"), "cannot be read"),
    ("a vocabulary too large", vocabulary(VOCABULARY + "".join(
        f"w{n}\n" for n in range(3000))), BEYOND),
    ("a vocabulary of another class",
     files(tokenizer__json=None, vocab__txt=None, vocab__json="{"),
     "knows special tokens alone"),
    ("broken options of a vocabulary",
     vocabulary(VOCABULARY, tokenizer_config__json="{"), "cannot be read"),
    ("a class that is not there",
     vocabulary(VOCABULARY, tokenizer_config__json='{"tokenizer_class": "Evil"}'),
     "cannot be read"),
]  # fmt: skip

CASES = [
    Case(f"tokenizer: {name}", make, ("{folder}/model", word))
    for name, make, word in TOKENIZERS
]
