"""The report's page: what it says, and that nothing in a run folder becomes part of its code."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from perla import UserError
from perla.analysis.compare import compare
from perla.analysis.style import COLOURS, MARKERS
from perla.cli import main
from perla.report import build, html, sources
from perla.report.page import digest
from report_runs import TASK, made_up, page_data
from run_folders import load_all

HOSTILE = "</script><img src=x onerror=alert(1)>&<!--"


class Document(HTMLParser):
    """The elements of a page with their text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        entry = [tag, dict(attributes), ""]
        self.found.append(entry)
        if tag not in html.VOID:
            self.open.append(entry)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for entry in self.open:
            entry[2] += data

    def texts(self, tag, **attributes):
        return [
            text
            for name, found, text in self.found
            if name == tag and all(found.get(key.rstrip("_")) == v for key, v in attributes.items())
        ]


def report(*paths, **options):
    return build.build(paths, version="test", replays=0, **options)[0]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Folders of two methods on two tasks."""
    folder = tmp_path_factory.mktemp("report")
    for env in (TASK, "matrix:climbing"):
        for algo, gain in (("ippo", 0.0), ("perla-ippo", 3.0)):
            made_up(folder / env.replace(":", "-") / algo, algo, env=env, gain=gain)
    return folder


@pytest.fixture(scope="module")
def page(compared):
    return report(compared)


# --- Content ------------------------------------------------------------------------------------


def test_the_verdict_comes_first_and_is_that_of_compare(page, compared):
    (verdict,) = Document(page).texts("p", class_="verdict")
    assert verdict.startswith("perla-ippo is better than ippo in 3 seeds of 2 tasks: ")
    assert verdict == compare(load_all([compared])).verdict
    text = page.decode()
    assert text.index('class="verdict"') < text.index("Learning curves") < text.index("<table")


def test_every_chart_has_a_series_for_each_method(page):
    charts = page_data(page)["charts"]
    titles = [chart["title"] for chart in charts]
    assert titles[:3] == ["All 2 tasks", TASK, "matrix:climbing"]
    assert [title.partition(":")[0] for title in titles[3:]] == ["Performance profiles"] * 3
    assert [[each["method"] for each in chart["series"]] for chart in charts] == [[0, 1]] * 6
    axes = {axis["key"] for axis in charts[0]["axes"]}
    assert axes == {"steps", "seconds", "flops"}
    assert {metric["key"] for metric in charts[0]["metrics"]} == {"return", "return_sampled"}


def test_the_curves_are_those_of_the_runs(page, compared):
    series = page_data(page)["charts"][1]["series"][0]
    run = next(
        entry.curves for entry in sources.read([compared]).entries if entry.curves.task == TASK
    )
    np.testing.assert_allclose(series["x"]["steps"], run.steps, rtol=1e-4)
    np.testing.assert_allclose(series["x"]["flops"], 2e6 * run.steps, rtol=1e-4)
    middle = run.metrics["return"].mean(axis=0)  # Of three seeds none is left out.
    np.testing.assert_allclose(series["y"]["return"]["point"], middle, rtol=1e-4)
    low, high = series["y"]["return"]["low"], series["y"]["return"]["high"]
    assert (np.array(low) <= middle + 1e-4).all()
    assert (middle <= np.array(high) + 1e-4).all()


def test_settings_that_differ_are_marked(page):
    document = Document(page)
    marked = document.texts("mark")
    assert "embedded" in marked
    assert "independent" not in marked  # The first method's own.
    assert any(text.endswith("settings differ between methods.") for text in document.texts("p"))


def test_no_failures_is_said_in_words(page):
    (said,) = [text for text in Document(page).texts("p") if "failures" in text]
    assert said == "No failures: all 4 runs are finished, and no seed or episode was dropped."


def test_an_unfinished_run_is_shown_and_named(tmp_path):
    made_up(tmp_path / "a", "ippo")
    made_up(tmp_path / "b", "mappo", finished=False)
    document = Document(report(tmp_path))
    (verdict,) = document.texts("p", class_="verdict")
    assert "there is no second method to compare with" in verdict
    assert any("mappo on" in text and "not finished" in text for text in document.texts("li"))


def test_runs_that_cannot_be_compared_are_shown_with_the_reason(tmp_path):
    made_up(tmp_path / "a", "ippo", steps=50_000)
    made_up(tmp_path / "b", "mappo")
    page = report(tmp_path)
    (verdict,) = Document(page).texts("p", class_="verdict")
    assert verdict.startswith("No comparison: ")
    assert "steps = 50000 and 100000" in verdict
    assert len(page_data(page)["charts"][0]["series"]) == 2


def test_curves_that_were_aligned_are_said_to_be(tmp_path):
    made_up(tmp_path / "a", "ippo", evaluations=5)
    made_up(tmp_path / "b", "mappo")
    document = Document(report(tmp_path))
    assert any("interpolated" in text for text in document.texts("li"))


def test_a_damaged_run_is_a_failure_and_stops_nothing(tmp_path):
    made_up(tmp_path / "a", "ippo")
    made_up(tmp_path / "b", "mappo")
    (tmp_path / "b" / "metrics.jsonl").write_text("{\n")
    (said,) = Document(report(tmp_path)).texts("li")
    assert "b/metrics.jsonl: damaged" in said


def test_runs_of_one_method_are_named_by_the_settings_in_which_they_differ(tmp_path):
    for lr in (1e-3, 3e-4):
        made_up(tmp_path / f"lr{lr}", "ippo", lr=lr)
    methods = page_data(report(tmp_path))["methods"]
    assert sorted(methods) == ["ippo lr=0.0003", "ippo lr=0.001"]


def test_seeds_of_equal_runs_are_joined(tmp_path):
    made_up(tmp_path / "one", "ippo")
    made_up(tmp_path / "two", "ippo", first_seed=2)
    made_up(tmp_path / "other", "mappo", seeds=5)
    page = report(tmp_path)
    document = Document(page)
    assert page_data(page)["methods"] == ["ippo", "mappo"]
    (verdict,) = document.texts("p", class_="verdict")
    assert "in 5 seeds" in verdict
    assert any(text.startswith("3 runs, 10 seeds, 1 task") for text in document.texts("p"))
    assert any("seed 2 left out" in text for text in document.texts("li"))


def test_equal_runs_that_cannot_be_joined_are_named_by_their_folders(tmp_path):
    made_up(tmp_path / "one", "ippo")
    made_up(tmp_path / "two", "ippo", first_seed=3, steps=50_000)
    page = report(tmp_path)
    assert page_data(page)["methods"] == ["ippo (one)", "ippo (two)"]
    marked = Document(page).texts("mark")
    assert "50,000" in marked
    assert "differs between tasks" not in page.decode()
    assert any("no runs are joined" in text for text in Document(page).texts("li"))


def test_results_of_other_programs_stand_beside_ours(tmp_path):
    made_up(tmp_path / "ours", "ippo")
    rows = [f"{step},{0.1 * step / 10_000},{seed}" for seed in range(3)
            for step in range(0, 100_001, 10_000)]  # fmt: skip
    (tmp_path / "theirs.csv").write_text("\n".join(["step,return,seed", *rows]))
    page, (section,) = build.build(
        [tmp_path / "ours", f"theirs={tmp_path / 'theirs.csv'}"], version="test"
    )
    assert page_data(page)["methods"] == ["ippo", "theirs"]
    assert section.comparison is not None
    assert len(page_data(page)["charts"][0]["series"]) == 2
    assert any("names no environment; taken for" in text for text in Document(page).texts("li"))


def verdict_file(folder, **facts):
    folder.mkdir(parents=True)
    content = {
        "experiment": "figure4", "scale": "quick", "figure": "Figure 4", "claim": "It is better.",
        "rule": "Intervals lie apart.", "verdict": "holds in part", "reason": "0.9 against 0.8",
        "rows": [{"method": "ippo", "return": "0.8"}],
    }  # fmt: skip
    (folder / "verdict.json").write_text(json.dumps(content | facts))
    Image.new("RGB", (4, 3)).save(folder / "curves.png")
    return folder


def test_a_reproduction_is_shown_with_its_claim_verdict_and_figures(tmp_path):
    page = report(verdict_file(tmp_path / "figure4"))
    document = Document(page)
    assert document.texts("span", class_="badge fair") == ["holds in part"] * 2  # With a link.
    (verdict,) = document.texts("p", class_="verdict")
    assert verdict == "Of 1 claim of the paper, 1 holds in part."
    assert "It is better." in page.decode()
    (picture,) = [attributes for tag, attributes, _ in document.found if tag == "img"]
    assert picture["alt"] == "figure4: curves"
    assert picture["src"].startswith("data:image/png;base64,iVBOR")


def test_the_numbers_beside_a_verdict_are_no_other_programs_runs(tmp_path):
    folder = verdict_file(tmp_path / "figure4")
    seed = {"step_0": {"step_count": 0, "return": [0.5]}, "absolute_metrics": {"return": [0.5]}}
    written = {"lbf": {"Foraging": {"ippo": {"seed_0": seed}}}}
    (folder / "marl_eval.json").write_text(json.dumps(written))
    document = Document(report(folder))
    assert document.texts("p", class_="verdict") == ["Of 1 claim of the paper, 1 holds in part."]
    assert "Learning curves" not in document.texts("h2")


@pytest.mark.parametrize("rows", [[], [{}], [{"a": "1"}, {"b": "2"}]])
def test_the_table_of_a_reproduction_may_be_anything(tmp_path, rows):
    document = Document(report(verdict_file(tmp_path / "v", rows=rows)))
    assert document.texts("caption") == ["figure4: results"] * bool(rows)


# --- Safety -------------------------------------------------------------------------------------


def test_text_of_a_run_folder_never_becomes_markup(tmp_path):
    folder = made_up(tmp_path / "run", "ippo")
    path = folder / "config.json"
    facts = json.loads(path.read_text())
    facts["run"]["algo"] = facts["environment"]["id"] = facts["versions"]["jax"] = HOSTILE
    facts["run"]["config"][HOSTILE] = facts["environment"]["rules"][HOSTILE] = HOSTILE
    path.write_text(json.dumps(facts))
    verdict_file(tmp_path / "v", claim=HOSTILE, reason=HOSTILE, rows=[{HOSTILE: HOSTILE}])
    page = report(tmp_path, title=HOSTILE)
    document = Document(page)
    assert [attributes for tag, attributes, _ in document.found if "onerror" in attributes] == []
    plain = Document(report(made_up(tmp_path / "plain", "ippo"), verdict_file(tmp_path / "w")))
    assert {tag for tag, *_ in document.found} == {tag for tag, *_ in plain.found}
    assert page_data(page)["methods"] == [HOSTILE]
    assert HOSTILE in document.texts("h1")


def test_no_two_elements_have_the_same_id(page):
    ids = [given["id"] for _, given, _ in Document(page).found if "id" in given]
    assert len(set(ids)) == len(ids) > 5


def test_the_page_loads_nothing_and_runs_its_own_script_alone(page):
    document = Document(page)
    (policy,) = [
        attributes["content"]
        for tag, attributes, _ in document.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    script = next(text for tag, given, text in document.found if tag == "script" and not given)
    (style,) = document.texts("style")
    assert f"script-src '{digest(script)}'" in policy
    assert f"style-src '{digest(style)}'" in policy
    addresses = set(re.findall(r"https?://[^\s\"'<>)]*", page.decode()))
    assert addresses == {"http://www.w3.org/2000/svg"}  # A name, which is not asked for.
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\("
    assert not re.search(markup, script)


@pytest.mark.parametrize("text", [HOSTILE, "\u2028", "a\x1b[31mb", "\u202e", '"', "'"])
def test_text_is_escaped_once(text):
    element = html.element("p", text, title=text)
    (entry,) = Document(element.encode()).found
    assert entry[2] == entry[1]["title"]
    inside = element.removeprefix('<p title="').removesuffix("</p>").replace('">', "", 1)
    assert not set(inside) & set("<>\"'\x1b\u2028\u202e")
    assert html.element("b", element) == f"<b>{element}</b>"


# --- The command --------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_says_where(compared, tmp_path, capsys):
    out = tmp_path / "report.html"
    arguments = ["--out", str(out), "--replays", "0", "--figures", str(tmp_path / "figures")]
    assert main(["report", str(compared / "matrix-climbing"), *arguments]) == 0
    said = capsys.readouterr().out
    assert "perla-ippo is better than ippo" in said
    assert said.splitlines()[-1].startswith(f"{out}: 0.")
    assert out.read_bytes().startswith(b"<!doctype html>")
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert len(figures) == 4  # Curves and profiles, as SVG and PDF.
    assert (tmp_path / "figures" / figures[0]).read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{}/none"], "none: no such file or folder"),
        (["{}/empty"], "empty: no run folder, nor is there one below"),
        (["{}/run", "--out", "{}/page.pdf"], "page.pdf: expected a name that ends in .html"),
        (["{}/run", "--out", "{}/no/page.html"], "no/page.html: there is no folder"),
        (["{}/run", "--replays", "-1"], "--replays -1: expected"),
        (["{}/v"], "verdict.json: damaged"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, argv, says):
    made_up(tmp_path / "run", "ippo")
    (tmp_path / "empty").mkdir()
    verdict_file(tmp_path / "v", rows=7)
    assert main(["report", *(word.format(tmp_path) for word in argv)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert not list(tmp_path.glob("*.html"))


def test_a_run_whose_environment_is_code_has_no_replay_without_the_users_word(tmp_path):
    folder = made_up(tmp_path / "run", "ippo")
    path = folder / "config.json"
    path.write_text(path.read_text().replace(TASK, "somebody:make"))
    page, _ = build.build([folder], version="test", replays=1)
    (note,) = [text for text in Document(page).texts("p") if "no replay" in text]
    assert "--trust" in note


def test_replays_are_of_the_best_method_of_each_task_first(compared):
    runs = [entry.curves for entry in sources.read([compared]).entries]
    order = [(run.method, run.task) for run in build.chosen(runs)]
    assert [method for method, _ in order] == ["perla-ippo", "perla-ippo", "ippo", "ippo"]
    assert len(set(order)) == 4


def test_the_figures_have_ten_colours_and_markers():
    assert len(set(COLOURS)) == len(set(MARKERS)) == 10


def test_a_folder_without_runs_is_refused_from_python(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        report(tmp_path)
