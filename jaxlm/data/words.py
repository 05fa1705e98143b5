"""Running text to words, for tasks that label words."""

from __future__ import annotations

import re

WORD = re.compile(
    r"""
    https?://\S+ | www\.\S+ | [\w.+-]+@[\w-]+\.[\w.-]*\w   # addresses
  | (?:[^\W\d_]\.){2,}                                     # U.S.  a.m.
  | \b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|Inc|Ltd|Corp|Co|vs)\.  # Dr.
  | '(?:s|S|re|ve|ll|d|m)\b                                # 's
  | n't\b
  | \d+(?:[.,:/-]\d+)*(?:%|(?![\w-]))                      # 1,200.5  2-1  14:30  3%
  | \w+?(?=n't\b) | \w+(?:[-&']\w+)*?(?='(?:s|S|re|ve|ll|d|m)\b)
  | \w+(?:[-&']\w+)*                                       # words, also hyphenated
  | \.{2,} | --+ | [!?]{2,} | [^\w\s]                                 # punctuation
    """,
    re.VERBOSE,
)


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Words as CoNLL-2003 has them, with character offsets: (word, start, stop).

    Punctuation stands alone, as do ``'s`` and ``n't``; hyphenated words, abbreviations,
    numbers and addresses stay whole.
    """
    return [(match[0], *match.span()) for match in WORD.finditer(text)]
