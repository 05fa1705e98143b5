"""What checkpoints cost a run, and how long it waits for input: from its own figures.

python tools/checkpoint_cost.py [--config.KEY=VALUE ...]

Trains configs/ner.py for 700 steps, saving after every 100 and not scoring. A save
costs the seconds for which it holds training up (`save_seconds`) and those by which the
lines after it are slower than the median line, while it is written in the background.
The first also compiles, and is told apart. Two to six minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY, LINE = 700, 100, 10
AFTER = 2
"""Lines after a save that may be slower for it: twenty steps, some four seconds."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "jaxlm.main", f"--config={ROOT}/configs/ner.py",
            f"--workdir={folder}/run", "--config.data.validation=",
            "--config.data.test=", f"--config.train.steps={STEPS}",
            f"--config.checkpoint.every_steps={EVERY}",
            f"--config.evaluate.every_steps={STEPS}",
            f"--config.train.log_every_steps={LINE}", *sys.argv[1:],
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").open())
        show([line for line in lines if line["split"] == "train"])


def show(lines: list[dict]) -> None:
    ends = {line["step"]: line["seconds"] for line in lines}
    steps = [step for step in ends if step % LINE == 0 and step > LINE]
    # An epoch's end has a line of its own: seconds are taken between the round ones.
    took = {step: ends[step] - ends[step - LINE] for step in steps}
    middle = statistics.median(took.values())
    first, *saves = range(EVERY, STEPS, EVERY)
    slower = statistics.mean(
        sum(took[save + LINE * number] - middle for number in range(1, AFTER + 1))
        for save in saves
    )
    # A line is written before the save of its step: the next one has it.
    held = {line["step"]: line["save_seconds"] for line in lines}
    later = (held[saves[-1] + LINE] - held[first + LINE]) / len(saves)
    between = middle * EVERY / LINE
    waits = statistics.median(line["input_wait"] for line in lines)
    print(
        f"a checkpoint holds training up for {later:.2f} s, and the {AFTER * LINE}"
        f" steps after it are slower by {slower:+.2f} s:"
        f" {(later + slower) / between:.2%} of the {between:.1f} s that {EVERY} steps"
        f" take (mean of {len(saves)});"
        f" the first holds it up for {held[first + LINE]:.2f} s"
    )
    print(f"input wait, median of lines: {waits:.2%}")


if __name__ == "__main__":
    main()
