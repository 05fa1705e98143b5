"""Split a CoNLL file by documents into train, validation and test files.

python tools/split_documents.py wikigold.conll.txt data/wikigold

Documents are whole (-DOCSTART- lines divide them), shuffled by the seed, and dealt out
70/10/20 by number of documents. Labels are written as IOB2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from jaxlm.core import door
from jaxlm.core.files import atomic_write_text
from jaxlm.data.sources import describe, load


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a CoNLL file with -DOCSTART- lines")
    parser.add_argument("output", type=Path, help="directory for the three files")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args(arguments)
    records = load(known.source, "train", format="conll")
    documents: dict[int, list] = {}
    for record in records:
        documents.setdefault(record["document"], []).append(record)
    order = np.random.default_rng(known.seed).permutation(sorted(documents))
    edges = [0, round(0.7 * len(order)), round(0.8 * len(order)), len(order)]
    for place, split in enumerate(("train", "validation", "test")):
        chosen = order[edges[place] : edges[place + 1]]
        mine = [record for number in chosen for record in documents[number]]
        path = known.output / f"{split}.conll"
        atomic_write_text(path, "\n".join(as_conll(record) for record in mine))
        print(f"{path}: {len(chosen)} documents, {describe(mine)}")


def as_conll(record: dict) -> str:
    """A sentence as lines of word and label."""
    pairs = zip(record["tokens"], record["labels"], strict=True)
    return "".join(f"{word} {label}\n" for word, label in pairs)


if __name__ == "__main__":
    door.run(main)
