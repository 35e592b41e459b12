"""Write the results of an experiment: verdict, table and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perla import machine
from perla.analysis.compare import compare
from perla.analysis.tables import marl_eval, rows
from perla.experiments.cache import cached
from perla.experiments.experiment import (
    Calculation,
    Experiment,
    Findings,
    Options,
    Scale,
    Verdict,
)
from perla.files import make_below, write_atomic
from perla.runs.store import dump
from perla.suites.execute import Outcome
from perla.suites.results import complete, create, draw


def judge(
    experiment: Experiment,
    name: str,
    scale: Scale,
    outcome: Outcome,
    out: Path,
    *,
    family: str | None = None,
    envs: Sequence[str] = (),
) -> Findings:
    """Judge an experiment's claim and `publish` it, with summary.json and marl_eval.json.

    The claim is not tested where a cell failed. `family` is that of the environments, and `envs`
    are the environments, if they were chosen; the verdict says that it is on these alone. Raises
    `UserError` where nothing can be compared.
    """
    runs = complete(outcome.results)
    comparison = compare(runs, metric=experiment.metric)
    if outcome.failures:
        verdict = Verdict("not tested", f"{len(outcome.failures)} cells failed")
        findings = Findings(verdict, rows(comparison), {})
    else:
        verdict = experiment.judge(runs)
        if envs:
            verdict = verdict._replace(reason=f"on {', '.join(envs)} alone: {verdict.reason}")
        findings = Findings(verdict, rows(comparison), experiment.draw(runs))
    more: dict[str, Any] = {"comparison": comparison.verdict, "failures": outcome.failures}
    flags = f" --family {family}" if family is not None else ""
    flags += f" --env {','.join(envs)}" if envs else ""
    findings = publish(experiment, name, scale, findings, out, flags, **more)
    write_atomic(out / "summary.json", dump(comparison.as_dict()))
    write_atomic(out / "marl_eval.json", dump(marl_eval(runs)))
    return findings


def calculate(
    calculation: Calculation,
    name: str,
    scale: Scale,
    out: Path,
    *,
    processes: int | None,
    say: Callable[[str], None],
) -> Findings:
    """Compute what has not been computed yet, in `processes` (None: as many as fit), and `publish`
    it. `say` is told of the progress."""
    compute = partial(cached, folder=make_below(out, Path("parts")), processes=processes, say=say)
    findings = calculation.compute(scale, Options(say, compute))
    return publish(calculation, name, scale, findings, out)


def publish(
    experiment: Experiment | Calculation,
    name: str,
    scale: Scale,
    findings: Findings,
    out: Path,
    flags: str = "",
    **more: Any,
) -> Findings:
    """Write verdict.json, with `more` facts in it, and the figures into `out`. `flags` follow the
    experiment and the scale in the command.

    Returns the findings as written: at scale `smoke` the verdict is "not tested".
    """
    create(out)
    if scale == "smoke":
        reason = f"a smoke run only shows that the code works ({findings.verdict.reason})"
        findings = findings._replace(verdict=Verdict("not tested", reason))
    facts = {
        "experiment": name,
        "scale": scale,
        "command": f"perla reproduce {name} --scale {scale}{flags}",
        "figure": experiment.figure,
        "claim": experiment.claim,
        "rule": experiment.rule,
        "verdict": findings.verdict.status,
        "reason": findings.verdict.reason,
        "rows": findings.rows,
        "claims": findings.claims,
        **more,
        "versions": machine.versions(),
        "hardware": machine.hardware(),
    }
    write_atomic(out / "verdict.json", dump(facts))
    for title, figure in findings.figures.items():
        draw(figure, out / title)
    return findings
