"""Count again the collectives that tests/test_layouts.py expects of this jax.

python -m tools.goldens            all families and layouts: minutes

Look at what changed before it is committed: a collective more is a step that waits.
"""

from __future__ import annotations

import json
from collections import Counter

import tests.conftest  # noqa: F401  # eight devices, before jax is imported
from tests.layouts import MODELS, layout, train
from tests.test_layouts import GOLDENS, LAYOUTS, collectives, setting


def main() -> None:
    """Write the counts of this jax beside those of others."""
    known = json.loads(GOLDENS.read_text()) if GOLDENS.exists() else {}
    mine = known.setdefault(setting(), {})
    for family in MODELS:
        for sizes in LAYOUTS:
            found = collectives(train(family, layout(sizes), 1).program)
            mine[f"{family} {sizes}"] = dict(Counter(kind for kind, _ in found))
            print(family, sizes, mine[f"{family} {sizes}"], flush=True)
            GOLDENS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
