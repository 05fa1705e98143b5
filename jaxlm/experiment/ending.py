"""After training: the best checkpoint's scores, the table and the report page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.core import config as configs
from jaxlm.core.errors import UserError
from jaxlm.core.hosts import here
from jaxlm.core.schema import to_dict
from jaxlm.core.types import Params
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.prepare import Prepared
from jaxlm.experiment.scoring import record
from jaxlm.train.checkpoints import Checkpoints, Damaged, OtherLayout
from jaxlm.train.evaluator import Evaluator
from jaxlm.train.objective import join
from jaxlm.train.progress import print_table, score_table
from jaxlm.train.recorded import first_and_last, read_results, read_status
from jaxlm.train.records import RunRecords
from jaxlm.train.report import write_report
from jaxlm.train.retention import choose
from jaxlm.train.state import State


def finish(
    run: Prepared,
    state: State,
    checkpoints: Checkpoints,
    evaluator: Evaluator,
    records: RunRecords,
    began: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score the best checkpoint on the test set, and show it all."""
    total, final = int(state.step), "test" if "test" in run.data else "validation"
    best, params = best_params(run, state, checkpoints, say)
    metrics: dict[str, Any] = {}
    if final in run.data:
        known = (best, final) in {
            (each["step"], each["split"]) for each in records.read()
        }
        evaluation = evaluator.evaluate(params, run.data[final])
        record(evaluation, final, best, records, line=not known)
        metrics = {**evaluation.metrics, "step": best, "split": final}
        if records.enabled:  # another process has no report
            say("")
            say(evaluation.report)
            before = first_and_last(read_results(records.workdir), final)[0]
            print_table(score_table(before, metrics))
    seconds = round(time.perf_counter() - began, 1)
    device = run.parts.mesh.devices.flat[0].device_kind
    records.write_status(
        "finished", total, total, best=best, seconds=seconds, device=device
    )
    page = report(records.workdir, run.parts.config)
    say(f"best checkpoint: step {best} of {total}; {seconds} s; report: {page}")
    return {**metrics, "step": best, "split": final}


def best_params(
    run: Prepared, state: State, checkpoints: Checkpoints, say: Callable[[str], None]
) -> tuple[int, Params]:
    """The step and the parameters of the best checkpoint that is whole."""
    abstract = run.parts.abstract_params
    while (best := choose(checkpoints, "best")[0]) != int(state.step):
        try:
            return best, checkpoints.restore_params(best, abstract)
        except (Damaged, OtherLayout) as problem:  # this very run wrote it
            aside = checkpoints.set_aside(best)
            say(f"best checkpoint {best} is damaged ({problem}); moved to {aside}")
    return best, join(state.trainable, state.frozen)


def show_again(
    config: ExperimentConfig, workdir: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """What a finished run came to: nothing is left to do."""
    status, results = read_status(workdir) or {}, read_results(workdir)
    for key in ("best", "step", "total_steps"):
        if not isinstance(status.get(key), int):
            raise UserError(
                f"{workdir}/status.json: {key} is not a number; delete the file and"
                " start again, which ends the run anew"
            )
    final = "test" if config.data.test else "validation"
    last = [
        each
        for each in results
        if each["split"] == final and each["step"] == status["best"]
    ]
    if last:
        print_table(score_table(first_and_last(results, final)[0], last[0]))
    elif getattr(config.data, final):
        say(f"{workdir}/results has no {final}-{status['best']}.json any more")
    page = report(workdir, config)
    say(
        f"{workdir} is finished: best checkpoint: step {status['best']} of"
        f" {status['total_steps']}; report: {page}; --overwrite trains anew"
    )
    return {**(last[0] if last else {}), "step": status["best"], "split": final}


def report(workdir: Path, config: ExperimentConfig) -> str:
    """Write the page, and say where it is, or why it is not: it can be had later."""
    if not here().first:
        return "written by the first process"
    try:
        return str(write_report(workdir, report_config(config)))
    except OSError as problem:
        reason = f"{problem.filename}: {problem.strerror}"
        return f"not written ({reason}); the same command again writes it"


def report_config(config: ExperimentConfig) -> dict[str, Any]:
    """The config and the versions, as the report shows them."""
    return {**to_dict(config), "versions": configs.versions()}
