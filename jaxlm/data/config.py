"""What a user may say about data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.schema import ConfigError, field

Source = str | Sequence[dict[str, Any]]


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they become rows."""

    train: Source = field("sample:ner", "training data: a source string or records")
    validation: Source = field("sample:ner", "data scored during training; '' for none")
    test: Source = field("sample:ner", "data scored once at the end; '' for none")
    format: str = field(
        "auto",
        "file format of path sources; auto: by the file's ending; text: all of a file"
        " is one running text",
        choices=("auto", "conll", "jsonl", "csv", "tsv", "parquet", "text"),
    )
    columns: str = field(
        "",
        "column names where they are not the usual ones, as 'text=review,label=stars';"
        " numbers (from 0) for a file without a header line",
    )
    scheme: str = field(
        "auto",
        "how entity labels are written in the data; all become IOB2",
        choices=("auto", "iob1", "iob2", "io", "bioes"),
    )
    max_length: int = field(128, "tokens in a row, special tokens included", minimum=8)
    stride: int | None = field(
        None,
        "tokens that two windows of an example share (overflow=split); none: a quarter"
        " of max_length, or 1 for causal_lm and 0 for masked_lm",
        minimum=0,
    )
    overflow: str = field(
        "split",
        "examples longer than max_length: split into windows and stitch the"
        " predictions, truncate (counted and reported), or error",
        choices=("split", "truncate", "error"),
    )
    packing: bool = field(True, "put several short examples in one row of max_length")
    workers: int = field(
        2, "threads that collate rows ahead of the step", minimum=1, maximum=256
    )

    def __post_init__(self) -> None:
        most = self.max_length - 3  # two special tokens, and a window must advance
        if self.overflow == "split" and (self.stride or 0) > most:
            raise ConfigError(
                "data.stride",
                f"{self.stride} is not allowed; at most {most}, below"
                f" config.data.max_length - 2 (max_length is {self.max_length})",
            )


def check_sources(data: DataConfig) -> None:
    """Refuse no data, and one's own that would be scored on the sample corpus.

    The samples are what ``configs/`` start from: where only ``train`` was changed,
    scores on the other splits would be of another data set.

    Raises:
      UserError: which of them, and what to do.
    """
    if not data.train:
        raise UserError("config.data.train: is empty; name a source to train on")
    if _is_sample(data.train):
        return
    for split in ("validation", "test"):
        if _is_sample(source := getattr(data, split)):
            raise UserError(
                f"config.data.{split}: still {source} while config.data.train is"
                f" {shown(data.train)}; name a source, or '' for none"
            )


def _is_sample(source: Source) -> bool:
    """Whether a source, or a part of a mixture, is the corpus that ships here."""
    parts = source.split(",") if isinstance(source, str) else ()
    return any(part.strip().startswith("sample:") for part in parts)


def shown(source: Source) -> str:
    """A source in a message."""
    return source if isinstance(source, str) else f"{len(source)} records in memory"
