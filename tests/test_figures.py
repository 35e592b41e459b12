"""Figures: complete, labelled, and the same bytes for the same numbers."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perla.analysis import figures, stats, style
from perla.analysis.compare import compare
from perla.analysis.load import Budget, Curves
from perla.analysis.stats import Score

METHODS = ("ippo", "mappo", "perla-ippo", "perla-mappo")


def run(method, *, task="lbf:Foraging-8x8-2p-2f-coop-v2", seeds=5, flops=2e6, evaluations=21):
    """A made-up run whose seeds learn at different speeds."""
    rng = np.random.default_rng([*method.encode(), *task.encode()])
    steps = np.linspace(0, 1.5e6, evaluations)
    pace = rng.uniform(2, 9, size=(seeds, 1)) + 3 * METHODS.index(method)
    value = np.tanh(pace * steps / 3e6) + rng.normal(scale=0.02, size=(seeds, evaluations))
    seconds = np.broadcast_to(steps / rng.uniform(4e3, 9e3), value.shape)
    last = {"return": value[:, -1]}
    return Curves(
        path=Path(f"runs/{method}"),
        method=method,
        algo=method,
        preset="default",
        env=task,
        environment={"id": task, "rules": {}},
        budget=Budget(1_500_000, seeds, evaluations - 1, 32, 320),
        seeds=tuple(range(seeds)),
        dropped=(),
        steps=steps,
        metrics={"return": value, "return_sampled": value, "wall_seconds": seconds},
        final=last,
        best={"return": value.max(axis=1)},
        absolute=last,
        flops_per_step=flops,
        finished=True,
    )


def scores(count, *, seed=0):
    points = np.sort(np.random.default_rng(seed).uniform(size=count))
    return [Score(float(p), float(p) - 0.1, float(p) + 0.05) for p in points]


def drawn():
    """Every kind of figure."""
    taus = np.linspace(0, 1, 51)
    tables = {m: np.random.default_rng(i).beta(2 + i, 2, (5, 3)) for i, m in enumerate(METHODS)}
    return {
        "comparison": figures.comparison(compare([run(m) for m in METHODS])),
        "uncounted": figures.comparison(compare([run(m, flops=None) for m in METHODS[:2]])),
        "learning_curves": figures.learning_curves(
            {t: [run(m, task=t) for m in METHODS] for t in ("8x8", "10x10", "15x15", "2s-8x8")}
        ),
        "bars": figures.bars(
            ["8x8-2p-2f", "10x10-3p-3f", "15x15-4p-5f"],
            {m: scores(3, seed=i) for i, m in enumerate(METHODS)},
            ylabel="Absolute return per episode",
        ),
        "counts": figures.bars(
            ["8x8", "10x10"], {m: [i, 2.0 * i] for i, m in enumerate(METHODS)}, ylabel="Failed runs"
        ),
        "against": figures.against(
            [1, 10, 100, 1000],
            {m: scores(4, seed=i) for i, m in enumerate(METHODS)},
            xlabel="K, joint actions sampled",
            ylabel="Absolute return per episode",
        ),
        "ranking": figures.ranking(
            {
                f"actor_network=mlp normalize_rewards=false num_samples={i}": s
                for i, s in enumerate(scores(30))
            },
            xlabel="Area under the curve",
        ),
        "compared_profiles": figures.compared_profiles(compare([run(m) for m in METHODS])),
        "profiles": figures.profiles(
            taus,
            {m: stats.performance_profile(table, taus) for m, table in tables.items()},
            xlabel="Absolute return",
        ),
    }


@pytest.fixture(scope="module")
def gallery():
    return drawn()


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


KINDS = (
    "comparison",
    "uncounted",
    "learning_curves",
    "bars",
    "counts",
    "against",
    "ranking",
    "compared_profiles",
    "profiles",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_labelled_and_fits(gallery, kind):
    figure = gallery[kind]
    png = figures.render(figure)
    assert png.startswith(b"\x89PNG")
    shown = {"uncounted": METHODS[:2], "ranking": ()}.get(kind, METHODS)
    assert legend(figure) == list(shown)
    assert any(axes.get_ylabel() for axes in figure.axes) or kind == "ranking"
    for axes in figure.axes:
        assert axes.get_xlabel() or kind in ("bars", "counts")
    renderer = figure.canvas.get_renderer()
    page = figure.bbox
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [found.get_window_extent(renderer) for found in figure.legends]
    for box in boxes:
        assert page.x0 - 1 <= box.x0 < box.x1 <= page.x1 + 1, "cut off at a side"
        assert page.y0 - 1 <= box.y0 < box.y1 <= page.y1 + 1, "cut off above or below"
    for box in boxes[:-1]:
        assert not box.overlaps(boxes[-1]), "the legend hides something"


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_the_same_numbers_are_the_same_bytes(format):
    first, second = drawn(), drawn()
    for kind in ("comparison", "bars"):
        data = figures.render(first[kind], format)
        assert data == figures.render(second[kind], format)
        assert not re.search(rb"<dc:date>", data)


def test_a_panel_of_computation_needs_every_count(gallery):
    labels = [axes.get_xlabel() for axes in gallery["comparison"].axes]
    assert len(labels) == 3
    assert "FLOPs" in labels[2]
    assert len(gallery["uncounted"].axes) == 2


def test_lines_are_interquartile_means_and_bands_their_intervals():
    one = run("ippo")
    (axes,) = figures.learning_curves({"a": [one]}).axes
    (line,) = axes.get_lines()
    np.testing.assert_allclose(line.get_ydata(), stats.iqm(one.metrics["return"]))
    (band,) = axes.collections
    low, high = stats.interval(one.metrics["return"])
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (min(low), max(high))


def test_a_method_looks_the_same_in_every_panel():
    figure = figures.learning_curves({"a": [run("ippo"), run("mappo")], "b": [run("mappo")]})
    first, second = figure.axes
    assert second.get_lines()[0].get_color() == first.get_lines()[1].get_color()
    assert second.get_lines()[0].get_linestyle() == first.get_lines()[1].get_linestyle()
    assert legend(figure) == ["ippo", "mappo"]


def test_ten_methods_differ_in_colour_and_in_marker():
    runs = [replace(run("ippo"), method=f"ippo-{i}") for i in range(10)]
    lines = figures.learning_curves({"a": runs}).axes[0].get_lines()
    assert len({line.get_color() for line in lines}) == 10
    assert len({line.get_marker() for line in lines}) == 10
    for line in lines:
        first, every = line.get_markevery()
        assert 6 <= len(range(first, 21, every)) <= 11


def test_long_names_are_not_cut():
    name = "perla-ippo actor_network=gru normalize_rewards=false ent_coef=0.001 num_samples=100"
    runs = [replace(run("ippo"), method=f"{name} lr={i}") for i in range(2)]
    figure = figures.learning_curves({"a": runs})
    figures.render(figure)
    (found,) = figure.legends
    box = found.get_window_extent(figure.canvas.get_renderer())
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert [" ".join(text.split()) for text in legend(figure)] == [run.method for run in runs]


def test_no_failures_is_said_in_words():
    for counts, said in (([0.0, 0.0], ["no failures"]), ([0.0, 1.0], [])):
        values = {"ippo": counts}
        (axes,) = figures.bars(["a", "b"], values, ylabel="Failures", none="no failures").axes
        assert [text.get_text() for text in axes.texts] == said


def test_many_methods_are_all_told_apart():
    runs = [replace(run("ippo"), method=f"ippo-{i}") for i in range(15)]
    (axes,) = figures.learning_curves({"a": runs}).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == 15


def test_whiskers_are_intervals_and_counts_have_none():
    figure = figures.bars(["a"], {"ippo": [Score(0.5, 0.3, 0.6)], "mappo": [2.0]}, ylabel="y")
    (axes,) = figure.axes
    assert [patch.get_height() for patch in axes.patches] == [0.5, 2.0]
    (segment,) = [s for lines in axes.collections for s in lines.get_segments()]
    np.testing.assert_allclose(segment[:, 1], [0.3, 0.6])


def test_every_whisker_of_every_method_is_in_sight(gallery):
    (axes,) = gallery["against"].axes
    low, high = axes.get_ylim()
    assert low < min(score.low for i in range(4) for score in scores(4, seed=i))
    assert high > max(score.high for i in range(4) for score in scores(4, seed=i))
    assert axes.get_xlim()[0] < 1 < 1000 < axes.get_xlim()[1]


def test_an_interval_that_misses_its_estimate_can_be_drawn():
    score = Score(0.5, 0.6, 0.7)
    figure = figures.against([1, 2], {"ippo": [score, score]}, xlabel="x", ylabel="y", log=False)
    assert figures.render(figure, "svg").startswith(b"<?xml")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.25, "0.25"), (250e3, "250k"), (1.5e6, "1.5M"), (3e12, "3T")]
)
def test_large_numbers_have_units(value, text):
    assert style.thousands(value) == text
