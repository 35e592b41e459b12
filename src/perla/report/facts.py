"""The facts of a report: settings, environments, versions, hardware and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perla.analysis.load import flatten
from perla.report.html import Markup, breakable, element
from perla.report.sources import Entry, Sources, words

ABSENT = "–"
"""A setting that a method does not have."""


def settings_tables(entries: Sequence[Entry]) -> list[Markup]:
    """The settings in which methods differ, and, folded, all settings."""
    methods = list(dict.fromkeys(entry.curves.method for entry in entries))
    values = {name: _settings([e for e in entries if e.curves.method == name]) for name in methods}
    names = list(dict.fromkeys(name for own in values.values() for name in own))
    differing = [
        name for name in names if len({values[method].get(name, ABSENT) for method in methods}) > 1
    ]
    found = []
    if len(methods) == 1:
        found.append(element("p", f"One method, {methods[0]}; its settings:", class_="note"))
    elif differing:
        note = f"{len(differing)} of {len(names)} settings differ between methods."
        found += [
            element("p", note, class_="note"),
            _grid("Settings that differ", differing, methods, values, differing),
        ]
    else:
        found.append(element("p", "All methods have the same settings.", class_="note"))
    whole = _grid("All settings", names, methods, values, differing)
    return [*found, element("details", element("summary", f"All {len(names)} settings"), whole)]


def _settings(entries: Sequence[Entry]) -> dict[str, str]:
    """A method's settings in words; those that vary over its tasks say so."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for entry in entries for name in entry.settings):
        different = {words(entry.settings.get(name)) for entry in entries}
        found[name] = different.pop() if len(different) == 1 else "differs between tasks"
    return found


def _grid(
    title: str,
    names: Sequence[str],
    methods: Sequence[str],
    values: Mapping[str, Mapping[str, str]],
    differing: Sequence[str],
) -> Markup:
    """Settings as rows and methods as columns; a value that is not the first method's is marked."""
    head = element(
        "tr",
        element("th", "setting", scope="col"),
        [element("th", method, scope="col") for method in methods],
    )

    def cell(name: str, method: str) -> Markup:
        value = values[method].get(name, ABSENT)
        first = values[methods[0]].get(name, ABSENT)
        marked = element("mark", value) if name in differing and value != first else value
        return element("td", marked)

    body = [
        element(
            "tr",
            element("th", breakable(name), scope="row"),
            [cell(name, each) for each in methods],
        )
        for name in names
    ]
    return _scrolling(
        title, element("caption", title), element("thead", head), element("tbody", body)
    )


def tuning_tables(sources: Sources) -> list[Markup]:
    """The budget, the seeds, the space and the result of every search of settings."""
    return [
        _pairs(
            f"Tuning of {each.algo} on {each.env}",
            {
                "trials": f"{words(each.trials)} ({each.complete} complete, {each.pruned} pruned, "
                f"{each.failed} failed)",
                "environment steps of all trials": each.steps,
                "seconds of all trials": round(each.seconds),
                "tuning seeds, of no result above": each.tuning_seeds,
                "objective": f"absolute {each.metric}, mean over the tuning seeds",
                "search": each.search,
                "pruner": each.pruner,
                "space": "; ".join(f"{name} ({words(one)})" for name, one in each.space.items()),
                "best trial": f"{each.best_trial}, {each.metric} {each.best_value:.4g}",
                "best settings": each.settings,
            },
        )
        for each in sources.tuned
    ]


def environment_table(entries: Sequence[Entry]) -> list[Markup]:
    """Every environment's sizes and rules."""
    tasks: dict[str, dict[str, Any]] = {}
    for entry in entries:
        tasks.setdefault(entry.curves.task, entry.curves.environment)
    return [
        element(
            "details",
            element("summary", task),
            _pairs(f"rules of {task}", flatten(facts)),
            open=len(tasks) == 1,
        )
        for task, facts in tasks.items()
    ]


def machine_table(entries: Sequence[Entry]) -> Markup:
    """Versions and hardware, with the number of runs of each where they differ."""
    found: dict[str, dict[str, int]] = {}
    for entry in entries:
        for name, value in {**entry.versions, **entry.hardware}.items():
            counts = found.setdefault(name, {})
            counts[words(value)] = counts.get(words(value), 0) + 1
    facts = {
        name: next(iter(counts))
        if len(counts) == 1
        else "; ".join(f"{value} ({count} runs)" for value, count in counts.items())
        for name, counts in found.items()
    }
    return _pairs("Versions and hardware", facts)


def problems(sources: Sources) -> Markup:
    """Runs that failed, seeds and episodes that were dropped; in words if there are none."""
    found = [f"{path}: {reason}" for path, reason in sources.failures.items()]
    for entry in sources.entries:
        run, name = entry.curves, f"{entry.curves.method} on {entry.curves.task}"
        if not run.finished:
            found.append(f"{name}: not finished ({run.steps[-1]:,.0f} steps of each seed so far)")
        found += [
            f"{name}: seed {seed} was dropped, as a number was not finite" for seed in run.dropped
        ]
        if entry.dropped_episodes:
            found.append(
                f"{name}: {entry.dropped_episodes} episodes were dropped and played anew, as the "
                "environment failed"
            )
    for verdict in sources.verdicts:
        found += [
            f"{verdict.facts.experiment}: {name}: {reason}"
            for name, reason in verdict.facts.failures.items()
        ]
    if found:
        return element("ul", [element("li", line) for line in found], class_="problems")
    count = len(sources.entries)
    runs = "the run is" if count == 1 else f"all {count} runs are"
    finished = f"{runs} finished, and no seed or episode was dropped" if count else "no run failed"
    return element("p", f"No failures: {finished}.")


def _pairs(title: str, facts: Mapping[str, Any]) -> Markup:
    rows = [
        element("tr", element("th", breakable(name), scope="row"), element("td", words(value)))
        for name, value in facts.items()
    ]
    return _scrolling(title, element("caption", title, class_="hidden"), element("tbody", rows))


def _scrolling(title: str, *content: Markup) -> Markup:
    return element(
        "div",
        element("table", content),
        class_="table",
        tabindex=0,
        role="region",
        aria_label=f"Table: {title}",
    )
