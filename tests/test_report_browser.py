"""The report's page in headless Chromium: charts, tables, replays, keyboard, themes, small screens.

Skipped where there is no Chromium; CONTRIBUTING.md says how to get one.
"""

import re
import shutil
import time

import numpy as np
import pytest

from marks import slow
from perla.envs.render import Field, Fighter, Grid, Table
from perla.report import build
from perla.report.page import Shown
from perla.report.replays import _fixed, _scene
from report_runs import TASK, made_up

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome")
TABLE = [[11, -30, 0], [-30, 7, 0], [0, 6, 5]]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
    "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def made_up_replay(kind, scenes, **more):
    """A replay of three steps of two agents with two actions."""
    frames = scenes if kind == "picture" else [_scene(scene) for scene in scenes]
    fixed = _fixed(frames)
    steps = [
        {"a": [0, 1], "p": [[0.75, 0.25], [0.4, 0.6]], "v": [0.5, 0.25], "m": [0.4, 0.2]}
        for _ in range(3)
    ]
    return {
        "kind": kind,
        "fixed": fixed,
        "frames": [{k: v for k, v in frame.items() if k not in fixed} for frame in frames],
        "agents": 2,
        "actions": ["north", "load"],
        "steps": steps,
        "rewards": [0.0, 0.5, 0.25],
        "return": 0.75,
        "ended": "terminated",
        "values": "critic",
    } | more


def replays():
    """One replay of each kind."""
    grids = [Grid(5, [(0, i, 1), (4, 4, 2)], [(2, 2, 2)] * (i < 3)) for i in range(4)]
    tables = [Table(np.array(TABLE, float), [(i % 3, 0)] * (i > 0)) for i in range(4)]
    marine = Fighter(1.5, 2.0, 0.4, False, "M", 0.5, 0.25, (3.5, 2.0))
    fields = [Field(("....#", "~....", "....."), [marine._replace(x=1.0 + i)]) for i in range(4)]
    found = {
        "grid": made_up_replay("grid", grids),
        "table": made_up_replay("table", tables),
        "field": made_up_replay("field", fields),
        "picture": made_up_replay("picture", [{"src": PIXEL}] * 4),
    }
    return [Shown(f"{kind} of ippo", f"A {kind}.", data) for kind, data in found.items()]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a page with two methods on two tasks and four replays."""
    folder = tmp_path_factory.mktemp("browser")
    for env in (TASK, "matrix:climbing"):
        for algo, gain in (("ippo", 0.0), ("perla-ippo", 3.0)):
            made_up(folder / env.replace(":", "-") / algo, algo, env=env, gain=gain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_record", lambda *_: (replays(), ["One replay is missing."]))
        content, _ = build.build([folder], version="test")
    path = folder / "report.html"
    path.write_bytes(content)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as engine:
        try:
            launched = engine.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            if found:
                raise
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page; at the end it has asked for nothing else and logged nothing."""
    opened = []

    def visit(where=address, **options):
        options = {"viewport": {"width": 1200, "height": 900}} | options
        page = browser.new_context(accept_downloads=True, **options).new_page()
        page.faults = []
        page.on("console", lambda message: page.faults.append(message.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("dialog", lambda dialog: page.faults.append(dialog.message))
        page.on("request", lambda request: page.faults.append(request.url))
        page.goto(where)
        page.wait_for_selector("html[data-ready]")
        page.expected = [where]
        opened.append(page)
        return page

    yield visit
    for page in opened:
        asked = [fault for fault in page.faults if not fault.startswith(("data:", "blob:"))]
        assert asked == page.expected
        page.context.close()


def series(page, chart=0):
    return page.locator(".chart").nth(chart).locator("g.series").count()


# --- Charts -------------------------------------------------------------------------------------


def test_every_chart_has_a_series_for_each_method(visit):
    page = visit()
    assert page.locator(".chart").count() == 6
    assert [series(page, chart) for chart in range(6)] == [2] * 6


def test_the_legend_hides_a_method_in_every_chart(visit):
    page = visit()
    toggle = page.locator("#legend button", has_text="perla-ippo")
    toggle.click()
    assert [series(page, chart) for chart in range(6)] == [1] * 6
    assert toggle.get_attribute("aria-pressed") == "false"
    page.locator("#legend button", has_text="ippo").first.click()
    assert "all are hidden" in page.locator(".chart").first.inner_text()
    toggle.click()
    assert series(page) == 1


def test_axes_and_metrics_are_chosen(visit):
    page = visit()
    label = page.locator(".chart").first.locator("text.label")
    for choice, expected in (
        ("Wall-clock time of all seeds", "Wall-clock time of all seeds, minutes"),
        ("Floating-point operations of each seed (matrix products)", "Floating-point"),
    ):
        page.get_by_label(choice).check()
        assert label.first.text_content().startswith(expected)
    page.get_by_label("Sampled return per episode").check()
    assert label.nth(1).text_content() == "Sampled return per episode"
    assert series(page) == 2


def test_pointing_at_a_chart_reads_its_values(visit):
    page = visit()
    page.locator(".frame svg").first.hover(position={"x": 300, "y": 100})
    tip = page.locator(".tip").first.inner_text()
    assert tip.startswith("Environment steps of each seed: ")
    assert tip.count("[") == 2
    assert tip.index("perla-ippo") < tip.index("\nippo")  # The higher value comes first.


def test_dragging_zooms_and_a_button_shows_all(visit):
    page = visit()
    frame = page.locator(".frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    ticks = frame.locator("text").all_text_contents()
    page.mouse.move(box["x"] + 150, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60, steps=4)
    page.mouse.up()
    assert frame.locator("text").all_text_contents() != ticks
    page.get_by_role("button", name="Show all").first.click()
    assert frame.locator("text").all_text_contents() == ticks


def test_a_chart_is_read_and_zoomed_by_the_keyboard(visit):
    page = visit()
    frame = page.locator(".frame").first
    frame.focus()
    page.keyboard.press("End")
    page.locator("#status", has_text="ippo").wait_for(state="attached")
    assert page.locator(".tip").first.inner_text().splitlines()[0].endswith("100k")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".tip").first.inner_text().splitlines()[0].endswith("90k")
    page.keyboard.press("+")
    assert page.get_by_role("button", name="Show all").first.is_visible()
    page.keyboard.press("0")
    assert not page.get_by_role("button", name="Show all").first.is_visible()


def test_a_chart_is_saved_as_svg(visit, tmp_path):
    page = visit()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save All 2 tasks as SVG").click()
    download.value.save_as(tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text()
    assert text.startswith("<svg")
    assert text.count('class="series"') == 2
    assert "var(--" not in text


# --- Tables -------------------------------------------------------------------------------------


def test_a_table_sorts_by_a_column_both_ways(visit):
    page = visit()
    table = page.locator("table.sortable").first
    rows = table.locator("tbody th")
    assert rows.all_text_contents() == ["ippo", "perla-ippo"]
    final = table.get_by_role("button", name="final")
    final.click()
    assert rows.all_text_contents() == ["ippo", "perla-ippo"]
    final.press("Enter")
    assert rows.all_text_contents() == ["perla-ippo", "ippo"]
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("final")


def test_a_table_is_copied_as_csv(visit):
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy All 2 tasks as CSV").click()
    page.locator("#status", has_text="All 2 tasks copied").wait_for(state="attached")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].startswith("method,seeds,absolute greedy return,final")
    assert re.match(r"ippo,\d+,\"0\.", lines[1])


# --- Replays ------------------------------------------------------------------------------------


def test_a_replay_is_stepped_and_scrubbed(visit):
    page = visit()
    replay = page.locator(".replay").first
    now = replay.locator(".now")
    assert now.inner_text() == "State 0 of 3, return so far 0"
    assert replay.locator(".apple").count() == 1
    replay.get_by_role("button", name="Forward").click()
    replay.get_by_role("button", name="Forward").click()
    assert now.inner_text() == "State 2 of 3, reward 0.5, return so far 0.5"
    replay.get_by_role("slider").fill("3")
    assert now.inner_text() == (
        "State 3 of 3, reward 0.25, return so far 0.75 – the episode is over"
    )
    assert replay.locator(".apple").count() == 0
    replay.get_by_role("button", name="First").click()
    assert now.inner_text().startswith("State 0")


def test_a_replay_plays_to_its_end_and_pauses(visit):
    page = visit()
    replay = page.locator(".replay").first
    replay.get_by_role("combobox").select_option("12")
    replay.get_by_role("button", name="Play").click()
    replay.get_by_role("button", name="Pause").click()
    stopped = replay.locator(".now").inner_text()
    page.wait_for_timeout(200)
    assert replay.locator(".now").inner_text() == stopped
    replay.get_by_role("button", name="Play").click()
    replay.locator(".now", has_text="State 3 of 3").wait_for()
    replay.get_by_role("button", name="Play").wait_for()


def test_a_replay_shows_what_every_agent_decides(visit):
    replay = visit().locator(".replay").first
    assert replay.locator("thead th").all_inner_texts() == [
        "agent", "next action", "probabilities", "value", "marginal",
    ]  # fmt: skip
    first = replay.locator("tbody tr").first.inner_text().split()
    assert first == ["#1", "north", "north", "75.0%", "load", "25.0%", "0.5", "0.4"]
    assert replay.locator(".chosen").all_inner_texts() == ["north 75.0%", "load 60.0%"]


def test_a_replay_obeys_the_keyboard(visit):
    page = visit()
    replay = page.locator(".replay").nth(1)
    replay.focus()
    page.keyboard.press("ArrowRight")
    assert replay.locator(".now").inner_text().startswith("State 1 of 3")
    assert replay.locator(".marked").count() == 1
    page.keyboard.press("End")
    assert replay.locator(".now").inner_text().startswith("State 3 of 3")
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    replay.get_by_role("button", name="Pause").wait_for()


def test_every_kind_of_scene_is_drawn(visit):
    page = visit()
    stages = page.locator(".stage")
    assert stages.nth(0).locator(".agent").count() == 2
    assert stages.nth(1).locator("rect.gain, rect.loss").count() == 9
    assert stages.nth(2).locator(".unit").count() == 1
    assert stages.nth(2).locator(".wall").count() == 1
    assert stages.nth(2).locator("svg").get_attribute("viewBox") == "0 0 5 3"
    assert stages.nth(2).locator("line.shot").count() == 1
    assert stages.nth(3).locator("img").evaluate("image => image.naturalWidth") == 1


# --- Themes, sizes, accessibility ---------------------------------------------------------------


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_page_is_dark_where_the_system_is_and_on_demand(visit):
    light, dark = visit(), visit(color_scheme="dark")
    assert background(light) == "rgb(255, 255, 255)"
    assert background(dark) == "rgb(20, 24, 29)"
    light.get_by_role("button", name="Dark").click()
    assert background(light) == background(dark)
    line = light.locator("g.series path.line").first
    assert line.evaluate("path => getComputedStyle(path).stroke") == "rgb(77, 163, 224)"


@pytest.mark.parametrize("width", [320, 380])
def test_a_phone_shows_everything_without_scrolling_sideways(visit, width):
    page = visit(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for chart in page.locator(".frame svg").all():
        box = chart.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert series(page) == 2


def hidden(page, where):
    """The pixels of the element that are seen only after scrolling sideways."""
    return page.locator(where).first.evaluate("each => each.scrollWidth - each.clientWidth")


def test_tables_fit_a_wide_page_and_the_decisions_of_a_replay_a_phone(visit):
    assert hidden(visit(), ".table") == 0
    phone = visit(viewport={"width": 380, "height": 800})
    assert hidden(phone, ".table") > 0
    assert hidden(phone, ".panel") == 0
    heads = phone.locator("table.sortable thead th")
    phone.locator(".table").first.evaluate("each => { each.scrollLeft = 300 }")
    assert heads.first.bounding_box()["x"] >= 0
    assert heads.nth(1).bounding_box()["x"] < 0


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1200), *slow(("dark", 1200), ("dark", 380))]
)
def test_axe_finds_nothing(visit, scheme, width):
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    result = axe.Axe().run(page)
    assert len(result.response["passes"]) > 20
    assert [(each["id"], each["impact"]) for each in result.response["violations"]] == []


def test_everything_is_reached_by_tab_alone(visit):
    page = visit()
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className || document.activeElement.id"))
        if "replay" in reached:
            break
    assert {"skip", "theme", "frame", "replay"} <= reached


def test_print_hides_the_controls_and_keeps_the_charts(visit, tmp_path):
    page = visit()
    page.emulate_media(media="print")
    assert not page.get_by_role("button", name="Copy CSV").first.is_visible()
    assert series(page) == 2
    page.pdf(path=str(tmp_path / "page.pdf"))
    assert (tmp_path / "page.pdf").stat().st_size > 20_000


def test_hostile_text_does_nothing(visit, tmp_path):
    folder = made_up(tmp_path / "run", "ippo")
    path = folder / "config.json"
    hostile = "</script><img src=x onerror=alert(1)>"
    path.write_text(path.read_text().replace(TASK, hostile).replace('"ippo"', f'"{hostile}"'))
    content, _ = build.build([folder], version="test", replays=0)
    (tmp_path / "page.html").write_bytes(content)
    page = visit((tmp_path / "page.html").as_uri())
    assert page.locator("img").count() == 0
    assert hostile in page.locator("#legend").inner_text()


# --- Size ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_suite_of_a_hundred_runs_is_small_and_soon_ready(visit, tmp_path):
    algos = ("ippo", "mappo", "perla-ippo", "perla-mappo", "coma", "happo", "iql", "vdn", "qmix",
             "qplex")  # fmt: skip
    for number in range(10):
        for algo in algos:
            env = f"matrix:random-n2-a3-s{number}"
            made_up(tmp_path / f"{number}-{algo}", algo, env=env, seeds=10, evaluations=50)
    content, _ = build.build([tmp_path], version="test", replays=0)
    assert len(content) < 10_000_000
    (tmp_path / "page.html").write_bytes(content)
    began = time.monotonic()
    page = visit((tmp_path / "page.html").as_uri())
    assert time.monotonic() - began < 3.0
    assert page.locator(".chart").count() == 22
    assert series(page, 21) == 10
