"""What a suite leaves behind beside its runs: a comparison or a verdict, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from perla.analysis import figures
from perla.analysis.compare import Comparison, compare, marl_eval, rows
from perla.analysis.load import Curves
from perla.files import explained, write_atomic
from perla.runs import machine
from perla.runs.store import dump
from perla.suites.execute import Outcome
from perla.suites.experiment import Calculation, Experiment, Findings, Scale, Verdict


def write(
    runs: Sequence[Curves],
    out: Path,
    *,
    metric: str = "return",
    threshold: float | None = None,
) -> Comparison:
    """Compare `runs` and write summary.json, marl_eval.json and the picture into `out`.

    Raises `UserError` as `perla.analysis.compare.compare` does.
    """
    comparison = compare(runs, metric=metric, threshold=threshold)
    _create(out)
    write_atomic(out / "summary.json", dump(comparison.as_dict()))
    write_atomic(out / "marl_eval.json", dump(marl_eval(runs)))
    draw(figures.comparison(comparison), out / "comparison")
    return comparison


def judge(experiment: Experiment, name: str, scale: Scale, outcome: Outcome, out: Path) -> Findings:
    """Judge an experiment's claim, and `publish` with it summary.json and marl_eval.json.

    Where a cell failed the claim is not judged. Raises `UserError` where nothing can be compared.
    """
    runs = complete(outcome.results)
    comparison = compare(runs, metric=experiment.metric)
    if outcome.failures:
        verdict = Verdict("not tested", f"{len(outcome.failures)} cells failed")
        findings = Findings(verdict, rows(comparison), {})
    else:
        findings = Findings(experiment.judge(runs), rows(comparison), experiment.draw(runs))
    more = {"comparison": comparison.verdict, "failures": outcome.failures}
    findings = publish(experiment, name, scale, findings, out, **more)
    write_atomic(out / "summary.json", dump(comparison.as_dict()))
    write_atomic(out / "marl_eval.json", dump(marl_eval(runs)))
    return findings


def publish(
    experiment: Experiment | Calculation,
    name: str,
    scale: Scale,
    findings: Findings,
    out: Path,
    **more: Any,
) -> Findings:
    """Write verdict.json, with `more` facts in it, and the figures into `out`: what was found, but
    at scale `smoke` without a verdict."""
    _create(out)
    if scale == "smoke":
        reason = f"a smoke run shows only that it works ({findings.verdict.reason})"
        findings = findings._replace(verdict=Verdict("not tested", reason))
    facts = {
        "experiment": name,
        "scale": scale,
        "command": f"perla reproduce {name} --scale {scale}",
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


def draw(figure: Figure, path: Path) -> None:
    """`figure` as `path`.png and `path`.svg."""
    for format in ("png", "svg"):
        write_atomic(path.with_suffix(f".{format}"), figures.render(figure, format))


def complete(runs: Sequence[Curves]) -> list[Curves]:
    """Those runs that can be compared where some failed: methods with any result at all, on the
    tasks where all of these have one."""
    tasks: dict[str, set[str]] = {}
    for run in runs:
        tasks.setdefault(run.method, set()).add(run.task)
    common = set.intersection(*tasks.values()) if tasks else set()
    return [run for run in runs if run.task in common]


def _create(folder: Path) -> None:
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
