"""Sub-word tokenizers, as the checkpoint's directory describes them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from jaxlm.core.errors import UserError
from jaxlm.core.files import atomic_write_text, read_json
from jaxlm.core.sources import VOCABULARIES
from jaxlm.data.columns import show


@dataclass(frozen=True)
class Frame:
    """The special tokens around a window: ids before and after its content."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def length(self) -> int:
        """How many tokens of a window are special."""
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Pieces:
    """Sub-word tokens without special ones: ``ids i32[n]``, ``words i32[n]``.

    ``words`` says which word, or which text of a pair, each token came from.
    """

    ids: np.ndarray
    words: np.ndarray


class Tokenizer:
    """Words or text to ids, special tokens apart.

    Reads ``tokenizer.json`` with the ``tokenizers`` library (no torch), and what
    ``tokenizer_config.json`` says of BERT's letters; a directory that has only a
    vocabulary is converted by ``transformers.AutoTokenizer``. Padding
    and truncation that the file may carry are switched off: windows are ours to cut.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._tokenizer = _open(directory)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.frame = self._frame()
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {str(token.content) for token in added if token.special}
        if special.issuperset(self._tokenizer.get_vocab()):
            raise UserError(
                f"{directory}: the tokenizer knows special tokens alone; is its"
                " vocabulary whole?"
            )

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id, of the vocabulary or of the frame."""
        known = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return max(*known, *self.frame.before, *self.frame.after) + 1

    @property
    def serialised(self) -> str:
        """The whole tokenizer as JSON: what ``tokenizer.json`` holds."""
        return self._tokenizer.to_str()

    @property
    def mask(self) -> int | None:
        """The id of what stands for a hidden token; None: there is none."""
        return self._special("mask_token", ("[MASK]", "<mask>"))

    @property
    def end(self) -> int | None:
        """The id of what ends a text of a language model; None: there is none."""
        return self._special("eos_token", ("<|endoftext|>", "</s>"))

    def _special(self, setting: str, usual: tuple[str, ...]) -> int | None:
        """By tokenizer_config.json, else what the token is usually called."""
        file = self.directory / "tokenizer_config.json"
        found = read_json(file) if file.exists() else {}
        named = found.get(setting) if isinstance(found, dict) else None
        named = named.get("content") if isinstance(named, dict) else named
        names = (named,) if isinstance(named, str) else usual
        ids = (self.number(name) for name in names)
        return next((number for number in ids if number is not None), None)

    def number(self, token: str) -> int | None:
        """The id of a token; None where it is in no vocabulary."""
        return self._tokenizer.token_to_id(token)

    def token(self, number: int) -> str | None:
        """The token of an id; None where there is none."""
        return self._tokenizer.id_to_token(number)

    def words(self, words: list[str]) -> Pieces:
        """Words, already split, to sub-words; a word may yield no token at all."""
        encoding = self._encode(words, is_pretokenized=True)
        index = np.asarray(encoding.word_ids, dtype=np.int32)
        return Pieces(np.asarray(encoding.ids, dtype=np.int32), index)

    def text(self, text: str) -> np.ndarray:
        """Running text to ``i32[n]``, without special tokens."""
        encoding = self._encode(text)
        return np.asarray(encoding.ids, dtype=np.int32)

    def save(self, directory: Path) -> None:
        """Write ``tokenizer.json``, from which this tokenizer can be read again."""
        text = self._tokenizer.to_str(pretty=True)
        atomic_write_text(directory / "tokenizer.json", text)

    def _encode(
        self,
        content: str | list[str],
        is_pretokenized: bool = False,
        add_special_tokens: bool = False,
    ) -> tokenizers.Encoding:
        try:
            return self._tokenizer.encode(
                content,
                is_pretokenized=is_pretokenized,
                add_special_tokens=add_special_tokens,
            )
        except Exception as problem:
            if type(problem) is not Exception:  # which is all that the library raises
                raise
            raise UserError(
                f"{self.directory}: the tokenizer cannot encode {show(content)}"
                f" ({problem}); is its vocabulary whole?"
            ) from problem

    def _frame(self) -> Frame:
        """Learn the special tokens from the tokenizer's own template."""
        encoding = self._encode("a", add_special_tokens=True)
        special = encoding.special_tokens_mask
        content = [place for place, flag in enumerate(special) if not flag]
        if not content:
            raise UserError(f"{self.directory}: the tokenizer gives nothing for 'a'")
        first, last = content[0], content[-1]
        return Frame(tuple(encoding.ids[:first]), tuple(encoding.ids[last + 1 :]))


def _open(directory: Path) -> tokenizers.Tokenizer:
    file = directory / "tokenizer.json"
    if file.exists():
        try:
            found = tokenizers.Tokenizer.from_file(str(file))
        except Exception as problem:  # the library raises bare Exception
            raise UserError(f"{file}: not a tokenizer: {problem}") from problem
        return _configured(found, directory / "tokenizer_config.json")
    if not any((directory / name).exists() for name in VOCABULARIES):
        raise UserError(
            f"{directory}: no tokenizer; one of {', '.join(VOCABULARIES)} must lie"
            " beside config.json"
        )
    # Or it says, where there is no torch, that models cannot be had: not from us.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        return tokenizers.Tokenizer.from_str(slow.backend_tokenizer.to_str())
    except Exception as problem:  # among others the library's bare Exception
        reason = str(problem).partition("\n")[0].strip()
        raise UserError(
            f"{directory}: the tokenizer cannot be read ({reason}); save it with"
            " transformers as tokenizer.json"
        ) from problem


BERT_OPTIONS = {
    "do_lower_case": ("lowercase", (bool,)),
    "strip_accents": ("strip_accents", (bool, type(None))),
    "tokenize_chinese_chars": ("handle_chinese_chars", (bool,)),
}
"""What tokenizer_config.json may say of BERT's normalizer, and its name there."""


GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")


def _configured(found: tokenizers.Tokenizer, file: Path) -> tokenizers.Tokenizer:
    """A tokenizer by tokenizer_config.json, which wins where the two files disagree.

    So transformers builds a ``BertTokenizer``, and so a checkpoint was trained; its
    general class (``GENERAL``) reads tokenizer.json alone. Unlike it, we take an option
    that is in neither for what tokenizer.json does, not for true.
    """
    own = json.loads(found.to_str())["normalizer"] or {}
    if own.get("type") != "BertNormalizer" or not file.exists():
        return found
    options = read_json(file)
    if not isinstance(options, dict):
        raise UserError(f"{file}: is not a JSON object")
    if options.get("tokenizer_class") in GENERAL:
        return found
    wanted = {name: own[name] for name in own if name != "type"}
    for option, (name, kinds) in BERT_OPTIONS.items():
        value = options.get(option, own[name])
        if not isinstance(value, kinds):
            raise UserError(
                f"{file}: {option} is {value!r}; true or false"
                + (" or null" if type(None) in kinds else "")
            )
        wanted[name] = value
    if wanted != {name: own[name] for name in wanted}:
        found.normalizer = tokenizers.normalizers.BertNormalizer(**wanted)
    return found
