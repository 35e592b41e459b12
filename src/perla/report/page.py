"""The page of a report: one HTML file that asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from perla.analysis.style import COLOURS, DARK_COLOURS, MARKERS
from perla.report.content import Section, curves_chart, profile_chart
from perla.report.facts import (
    environment_table,
    machine_table,
    problems,
    settings_tables,
    tuning_tables,
)
from perla.report.html import Markup, data, element
from perla.report.replays import png
from perla.report.sources import Reproduction, Sources

SCRIPTS = ("dom.js", "tables.js", "charts.js", "scenes.js", "replays.js", "page.js")
"""The files of the page's script, in order."""
STATUS = {"holds": "good", "holds in part": "fair", "does not hold": "bad", "not tested": "open"}
"""The style of a verdict's status."""


class Shown(NamedTuple):
    """A replay on the page."""

    heading: str
    caption: str
    data: Mapping[str, Any]
    """The result of `replays.replay`."""


@dataclass(frozen=True)
class Report:
    """Everything that a page shows."""

    title: str
    sources: Sources
    sections: Sequence[Section]
    replays: Sequence[Shown]
    notes: Sequence[str]
    """Sentences on replays that there are not."""
    version: str
    """The version of perla."""

    @property
    def methods(self) -> list[str]:
        """The names of all methods; a method's place here is its colour and marker."""
        return list(dict.fromkeys(run.method for run in self.sources.runs))


def page(report: Report) -> bytes:
    """The page's bytes, in UTF-8."""
    sources, sections, methods = report.sources, report.sections, report.methods
    charts = [curves_chart(section, methods) for section in sections]
    profiles = [profile_chart(s, s.comparison, methods) for s in sections if s.comparison]
    facts = {
        "methods": methods,
        "markers": MARKERS,
        "charts": [*charts, *profiles],
        "replays": [each.data for each in report.replays],
    }
    body = [
        _header(report.title, sources, sections),
        _reproductions(sources.verdicts),
        _curves(charts),
        _tables(sections),
        _profiles(charts, profiles),
        _replays(report.replays, report.notes),
        _part("Settings", settings_tables(sources.entries)) if sources.entries else None,
        _part("Tuning", tuning_tables(sources)) if sources.tuned else None,
        _part("Environments", environment_table(sources.entries)) if sources.entries else None,
        _part("Failures and retries", problems(sources)),
        _part("Versions and hardware", machine_table(sources.entries)) if sources.entries else None,
    ]
    script, style = _script(), _style()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"script-src '{digest(script)}'; style-src '{digest(style)}'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"perla {report.version}"),
        element("title", report.title),
        element("style", Markup(style)),
    )
    content = element(
        "body",
        element("a", "Skip to the results", href="#content", class_="skip"),
        element("main", body, id="content"),
        element(
            "footer", f"Made by perla {report.version}. This page loads nothing from anywhere."
        ),
        element("p", class_="status", role="status", id="status"),
        element("noscript", "The charts, replays and sorting of this page need JavaScript."),
        element("script", data(facts), type="application/json", id="data"),
        element("script", Markup(script)),
    )
    return f"<!doctype html>\n{element('html', head, content, lang='en')}\n".encode()


def digest(text: str) -> str:
    """The digest of a script or a style sheet, as a content security policy states it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def asset(name: str) -> str:
    """The text of a file of the page."""
    return resources.files("perla.report").joinpath("assets", name).read_text("utf-8")


def _script() -> str:
    parts = "\n".join(asset(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();\n'


def _style() -> str:
    def variables(colours: Sequence[str]) -> str:
        return " ".join(f"--c{index}: {colour};" for index, colour in enumerate(colours))

    text = asset("page.css")
    return text.replace("/* light */", variables(COLOURS)).replace(
        "/* dark */", variables(DARK_COLOURS)
    )


# --- Parts --------------------------------------------------------------------------------------


def _part(title: str, *content: Any) -> Markup:
    name = "part-" + re.sub("[^a-z]+", "-", title.lower())
    return element(
        "section", element("h2", title, id=name), *content, aria_labelledby=name, class_="part"
    )


def _header(title: str, sources: Sources, sections: Sequence[Section]) -> Markup:
    first, *others = sections or (None,)
    verdict = element("p", _verdict(first.verdict), class_="verdict") if first else None
    per_task = [
        element("li", element("strong", section.title), " – ", section.verdict)
        for section in others
        if section is not None
    ]
    runs = len(sources.entries)
    seeds = sum(len(run.seeds) for run in sources.runs)
    tasks = len({run.task for run in sources.runs})
    scope = f"{_count(runs, 'run')}, {_count(seeds, 'seed')}, {_count(tasks, 'task')}"
    if sources.verdicts:
        claims = f"{_count(len(sources.verdicts), 'claim')} of the paper"
        scope = f"{scope}, {claims}" if runs else claims
    return element(
        "header",
        element(
            "div",
            element("h1", title),
            element("button", "Dark", id="theme", type="button", aria_pressed="false"),
            class_="title",
        ),
        verdict or _claims(sources.verdicts),
        _notes(sources, sections),
        element(
            "details",
            element("summary", f"The verdict on {_count(len(per_task), 'more task')}"),
            element("ul", per_task, class_="verdicts"),
        )
        if per_task
        else None,
        element("p", scope, class_="note"),
    )


def _notes(sources: Sources, sections: Sequence[Section]) -> Markup | None:
    """Lines on what was done to make the runs comparable."""
    compared = [each.comparison for each in sections if each.comparison is not None]
    made = [note for each in compared for note in each.notes]
    lines = dict.fromkeys([*sources.notes, *made])
    return element("ul", [element("li", line) for line in lines], class_="notes") if lines else None


def _claims(verdicts: Sequence[Reproduction]) -> Markup | None:
    """The number of claims of each status in one sentence, and a list with a link to each."""
    if not verdicts:
        return None
    statuses = [verdict.facts.verdict for verdict in verdicts]
    counts = [f"{statuses.count(each)} {each}" for each in STATUS if each in statuses]
    links = [
        element(
            "li",
            element("a", each.facts.experiment, href=f"#claim-{index}"),
            ": ",
            _badge(each.facts.verdict),
        )
        for index, each in enumerate(verdicts)
    ]
    said = f"Of {_count(len(verdicts), 'claim')} of the paper, {', '.join(counts)}."
    return element("div", element("p", said, class_="verdict"), element("ul", links))


def _badge(status: str) -> Markup:
    return element("span", status, class_=f"badge {STATUS.get(status, 'open')}")


def _verdict(text: str) -> list[Markup | str]:
    """A verdict with its claim, which precedes the numbers, in bold."""
    claim, colon, numbers = text.partition(": ")
    return [element("strong", claim), element("span", colon, numbers)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _reproductions(verdicts: Sequence[Reproduction]) -> Markup | None:
    if not verdicts:
        return None
    articles = [_reproduction(index, each) for index, each in enumerate(verdicts)]
    return _part("The paper's claims", articles)


def _reproduction(index: int, verdict: Reproduction) -> Markup:
    facts = verdict.facts
    pictures = [
        element("img", src=png(picture), alt=f"{facts.experiment}: {name}", loading="lazy")
        for name, picture in verdict.figures.items()
    ]
    return element(
        "article",
        element("h3", f"{facts.experiment}: ", _badge(facts.verdict), id=f"claim-{index}"),
        element(
            "div",
            element(
                "div",
                element("p", element("strong", f"The paper, {facts.figure}: "), facts.claim),
                element("p", element("strong", "Found: "), facts.reason),
                element("p", element("strong", "Rule: "), facts.rule, class_="note"),
                element("p", "Made by ", element("code", facts.command), class_="note")
                if facts.command
                else None,
            ),
            element("div", pictures) if pictures else None,
            class_="claim",
        ),
        table(f"{facts.experiment}: claims", facts.claims) if facts.claims else None,
        table(f"{facts.experiment}: results", facts.rows) if facts.rows else None,
    )


def _curves(charts: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not charts:
        return None
    note = (
        "Lines are interquartile means over seeds and tasks, bands their 95% bootstrap intervals. "
        "Point at a chart to read it, or focus it and use the arrow keys. Drag to zoom, or use + "
        "and −; double-click or 0 shows all."
    )
    controls = element("div", class_="controls", id="controls")
    figures = [_figure(index, chart["title"]) for index, chart in enumerate(charts)]
    return _part(
        "Learning curves", element("p", note, class_="note"), controls,
        element("div", class_="legend", id="legend"),
        element("div", figures, class_="figures"),
    )  # fmt: skip


def _figure(index: int, title: str) -> Markup:
    return element(
        "figure", element("figcaption", title), element("div", class_="chart", data_chart=index)
    )


def _tables(sections: Sequence[Section]) -> Markup | None:
    if not sections:
        return None
    note = (
        "Scores are interquartile means with 95% intervals. A column's name sorts the table by it."
    )
    tables = [table(section.title, section.table) for section in sections]
    return _part("Results", element("p", note, class_="note"), tables)


def _profiles(charts: Sequence[Any], profiles: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not profiles:
        return None
    note = "The share of runs above each score: higher is better. The band is the 95% interval."
    figures = [_figure(len(charts) + index, chart["title"]) for index, chart in enumerate(profiles)]
    return _part(
        "Performance profiles", element("p", note, class_="note"),
        element("div", figures, class_="figures"),
    )  # fmt: skip


def _replays(replays: Sequence[Shown], notes: Sequence[str]) -> Markup | None:
    if not replays and not notes:
        return None
    articles = [
        element(
            "article",
            element("h3", replay.heading, id=f"replay-{index}"),
            element("p", replay.caption, class_="note"),
            element("div", class_="replay", data_replay=index),
            aria_labelledby=f"replay-{index}",
        )
        for index, replay in enumerate(replays)
    ]
    return _part("Replays", articles, [element("p", note, class_="note") for note in notes])


def table(title: str, rows: Sequence[Mapping[str, str]]) -> Markup:
    """A table that the page's script makes sortable; its first column names the rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = element("tr", [element("th", name, scope="col") for name in names])
    body = [
        element(
            "tr",
            [element("th", row.get(name, ""), scope="row") for name in names[:1]],
            [_cell(row.get(name, "")) for name in names[1:]],
        )
        for row in rows
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", title),
            element("thead", head),
            element("tbody", body),
            class_="sortable",
        ),
        class_="table",
        tabindex=0,
        role="region",
        aria_label=f"Table: {title}",
    )


def _cell(text: str) -> Markup:
    """A cell; an interval or a count behind a number may stand below it, where room is scarce."""
    match = re.fullmatch(r"(\S+) (\[.*\]|\(.*\))", text)
    if not match:
        return element("td", text)
    return element(
        "td", match[1], " ", element("span", match[2], class_="interval"), class_="estimate"
    )
