"""README.md of an export: what the model is, from which data, how well it does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core import config as configs
from jaxlm.core.schema import flatten as flat_config
from jaxlm.core.schema import leaves
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.models.checkpoint import RANDOM
from jaxlm.train.recorded import read_metrics, read_object, read_results

PIPELINES = {"tokens": "token-classification", "text": "text-classification"}
PIPELINES |= {"answers": "question-answering"}
LICENCE = (
    "To be filled in by whoever publishes this model: `license:` above, and here what"
    " the licences of the pretrained weights and of the data ask for."
)


def run_card(
    workdir: Path,
    config: ExperimentConfig,
    step: int,
    *,
    name: str,
    head: str,
    labels: Sequence[str],
    opens: str,
) -> str:
    """The card of a run's checkpoint; ``opens`` is the class that opens it."""
    facts = read_object(workdir / "data.json") if _has(workdir, "data.json") else {}
    task = config.task.name.replace("_", " ")
    return _joined(
        _front(PIPELINES.get(head), base=config.model.pretrained),
        f"# {_line(name)}",
        f"{task.capitalize()}, trained by jaxlm from"
        f" `{_line(config.model.pretrained)}`: the checkpoint of step {step:,} of"
        f" `{_line(workdir.resolve().name)}`.",
        _usage(opens),
        "## Labels" if labels else "",
        ", ".join(f"`{_line(label)}`" for label in labels),
        "## Data",
        _data(config, facts),
        "## Metrics",
        _metrics(workdir, step),
        "## Config",
        "What differs from the defaults of jaxlm; `config.json` of the run has all.",
        _block(_changed(config)),
        "## Versions",
        _versions(read_object(workdir / configs.FILE).get("versions", {}), "trained"),
        "## Licence",
        LICENCE,
    )


def source_card(source: str, family: str, head: str | None, opens: str) -> str:
    """The card of a checkpoint that was exported as it is."""
    same = "the same weights, not trained further"
    if source.startswith(RANDOM):
        same = "its shapes alone, with new random weights that nobody has trained"
    return _joined(
        _front(PIPELINES.get(head or ""), base=source),
        f"# {_line(source)}",
        f"The {family} checkpoint `{_line(source)}`, written again by jaxlm: {same}.",
        _usage(opens),
        "## Versions",
        _versions({}, "trained"),
        "## Licence",
        LICENCE,
    )


def _front(pipeline: str | None, base: str) -> str:
    lines = ["library_name: transformers", "tags:", "- jaxlm"]
    if pipeline:
        lines.append(f"pipeline_tag: {pipeline}")
    if found := re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(@[\w./-]+)?", base):
        lines.append(f"base_model: {found[1]}")
    lines.append("# license: fill in, for example apache-2.0")
    return "\n".join(["---", *lines, "---"])


def _usage(opens: str) -> str:
    code = (
        f"from transformers import AutoTokenizer, {opens}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = {opens}.from_pretrained("FOLDER")'
    )
    return f"```python\n{code}\n```"


def _data(config: ExperimentConfig, facts: Mapping[str, Any]) -> str:
    rows = ["| split | source | examples | tokens |", "|---|---|---:|---:|"]
    for split in ("train", "validation", "test"):
        source = getattr(config.data, split)
        if not source:
            continue
        known = facts.get(split) or {}
        counts = [f"{known[key]:,}" if key in known else "" for key in COUNTS]
        rows.append(f"| {split} | {_cell(source)} | {' | '.join(counts)} |")
    return "\n".join(rows)


COUNTS = ("examples", "tokens")


def _metrics(workdir: Path, step: int) -> str:
    """Those in results/ of this step, else the lines of metrics.jsonl."""
    found = [each for each in read_results(workdir) if each["step"] == step]
    if not found:
        found = [each for each in read_metrics(workdir) if each["step"] == step]
    found = [each for each in found if each["split"] != "train"]
    if not found:
        return "None was measured at this step."
    names = [name for each in found for name in each if name not in BESIDE]
    rows = [["metric", *(each["split"] for each in found)]]
    rows += [
        [name, *(_figure(each.get(name)) for each in found)]
        for name in dict.fromkeys(names)
    ]
    head, *body = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([head, "|---|" + "---:|" * len(found), *body])


BESIDE = ("split", "step", "seconds", "tokens_per_second", "truncated")
"""What a result says of itself and of its machine, rather than of the model."""


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else f"{value:,}"


def _changed(config: ExperimentConfig) -> str:
    """The keys whose values are not the defaults."""
    own = flat_config(config)
    defaults = {key: leaf.default for key, leaf in leaves(ExperimentConfig).items()}
    changed = {
        key: value for key, value in own.items() if value != defaults.get(key, value)
    }
    return json.dumps(changed, indent=2, default=str, ensure_ascii=False)


def _block(text: str) -> str:
    return f"```json\n{text}\n```"


def _versions(before: Mapping[str, str], what: str) -> str:
    now = configs.versions()
    lines = ["| package | exported with |", "|---|---|"]
    rows = [(name, now[name]) for name in now]
    if before:
        lines = [f"| package | {what} with | exported with |", "|---|---|---|"]
        rows = [(name, str(before.get(name, "")), now[name]) for name in now]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _has(workdir: Path, name: str) -> bool:
    return (workdir / name).is_file()


def _cell(value: Any) -> str:
    return _line(str(value)).replace("|", "\\|")


def _line(text: str) -> str:
    """A text of somebody else's on one line, and no code of ours ended by it."""
    return " ".join(text.split()).replace("`", "'")


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
