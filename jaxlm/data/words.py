"""Running text to words, for tasks that label words."""

from __future__ import annotations

import re
import unicodedata

_MARKS = "".join(
    chr(code)
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    if unicodedata.category(chr(code)).startswith("M")
)
"""Accents, vowel signs and variation selectors, which Python's ``\\w`` leaves out."""

_JOINED = f"[{_MARKS}\u200c\u200d]"  # and the joiners inside words and emoji
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_W = rf"(?:[^\W{_HAN}]|{_JOINED})"
_CLITIC = r"(?:'|\u2019)(?:s|S|re|ve|ll|d|m)\b"

WORD = re.compile(
    rf"""
    (?:https?://|www\.)\S*[^\s.,;:!?'")\]]                     # addresses
  | [\w.+-]{{1,64}}@[\w-]+\.(?:[\w.-]*\w)
  | (?:[^\W\d_{_HAN}]\.){{2,}}                                # U.S.  a.m.
  | \b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|Inc|Ltd|Corp|Co|vs)\.     # Dr.
  | {_CLITIC}                                                 # 's
  | n['\u2019]t\b
  | \d+(?:[.,:/-]\d+)*(?:%|(?![\w-]))                         # 1,200.5  2-1  14:30  3%
  | {_W}+?(?=n['\u2019]t\b) | {_W}+(?:[-&'\u2019]{_W}+)*?(?={_CLITIC})
  | {_W}+(?:[-&'\u2019]{_W}+)*                                # words, also hyphenated
  | [{_HAN}]{_JOINED}*                                        # written without spaces
  | \.{{2,}} | --+ | [!?]{{2,}} | [^\w\s]{_JOINED}*             # punctuation
    """,
    re.VERBOSE,
)


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Words as CoNLL-2003 has them, with character offsets: (word, start, stop).

    Punctuation stands alone, as do ``'s`` and ``n't`` and each Chinese character;
    hyphenated words, abbreviations, numbers and addresses stay whole.
    """
    return [(match[0], *match.span()) for match in WORD.finditer(text)]
