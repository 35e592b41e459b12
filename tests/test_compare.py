"""Comparisons: numbers computed by hand, verdicts, and unfair comparisons that are refused."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from perla.analysis import stats
from perla.analysis.compare import compare
from perla.analysis.gather import find
from perla.analysis.load import Budget, load
from perla.analysis.tables import as_csv, as_latex, as_markdown, chances, marl_eval, rows
from perla.config import VERSION
from perla.errors import UserError
from run_folders import BAD, GOOD, TASK, load_all, write_run

OTHER = "lbf:Foraging-8x8-2p-2f-v2"


@pytest.fixture
def folder(tmp_path):
    """Writes run folders as training does: every seed's curve rises straight to `final`."""
    return lambda name, *arguments, **options: write_run(tmp_path / name, *arguments, **options)


@pytest.fixture
def pair(folder):
    return load_all([folder("a", "ippo", BAD), folder("b", "perla-ippo", GOOD)])


# --- Reading ------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_written(folder):
    run = load(folder("a", final=(0.5, 1.0), preset="epymarl"))
    assert (run.method, run.algo, run.preset, run.env, run.task) == (
        *("ippo", "ippo", "epymarl"),
        *(TASK, TASK),
    )
    assert run.budget == Budget(100, 2, 2, 32, 320)
    assert run.environment["rules"] == {"size": 5, "penalty": 0.0}
    assert run.finished
    assert run.flops_per_step == 1e6
    np.testing.assert_array_equal(run.steps, [0, 50, 100])
    np.testing.assert_array_equal(run.wall_seconds, [0, 60, 120])
    np.testing.assert_array_equal(run.metrics["return"], [[0, 0.25, 0.5], [0, 0.5, 1]])
    np.testing.assert_array_equal(run.metrics["td_error"], [[np.nan, 1, 1]] * 2)
    np.testing.assert_array_equal(run.final["return"], [0.5, 1])
    np.testing.assert_array_equal(run.best["step"], [100, 100])
    np.testing.assert_array_equal(run.absolute["return_sampled"], [0.25, 0.5])


def test_an_unfinished_run_has_its_curves_and_no_results(folder):
    path = folder("a", final=(0.5, 1.0))
    (path / "summary.json").unlink()
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text[:-20])  # A line that is being written.
    run = load(path)
    assert not run.finished
    assert (run.final, run.best, run.absolute, run.flops_per_step) == ({}, {}, {}, None)
    assert run.metrics["return"].shape == (2, 2), "what every seed has"


def test_runs_are_found_below_a_folder_in_order(folder, tmp_path):
    paths = [folder("suite/b", "mappo"), folder("suite/a/deep"), folder("one")]
    assert [each.path for each in find(tmp_path / "suite")] == [paths[1], paths[0]]
    assert [each.path for each in find(paths[2])] == [paths[2]]
    runs = load_all([tmp_path / "suite", paths[2]])
    assert [run.path for run in runs] == [paths[1], paths[0], paths[2]]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "not a run folder"),
        ("config.json", b"{]", "config.json: damaged"),
        (
            "config.json",
            b'{"settings_version": %d, "run": {"seeds": [0]}}' % VERSION,
            "config.json: damaged",
        ),
        ("config.json", b"\xff", "config.json: damaged"),
        ("metrics.jsonl", None, "metrics.jsonl: no evaluation"),
        ("metrics.jsonl", b"", "metrics.jsonl: no evaluation"),
        ("metrics.jsonl", b"{]\n", "metrics.jsonl: damaged"),
        ("metrics.jsonl", b'{"return": 1.0}\n', "metrics.jsonl: damaged"),
        ("metrics.jsonl", b'{"seed": 0, "evaluation": 0, "step": 0}\n', "metrics.jsonl: damaged"),
        ("metrics.jsonl", b'{"seed": "0"}\n', "metrics.jsonl: damaged"),
        ("summary.json", b"{}", "summary.json: damaged"),
        ("summary.json", b'{"seeds": [{"seed": 0}]}', "summary.json: damaged"),
    ],
)
def test_damage_is_reported_in_a_line_with_the_file_name(folder, file, content, said):
    path = folder("a")
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        load_all([tmp_path])
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        load_all([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="not a run folder"):
        load(tmp_path / "nowhere")


# --- The numbers --------------------------------------------------------------------------------


def test_a_comparison_by_hand(pair):
    compared = compare(pair)
    ippo, perla = compared.methods
    assert (ippo.name, perla.name) == ("ippo", "perla-ippo")
    assert compared.tasks == (TASK,)
    # ⌊5/4⌋ = 1 from either end.
    assert perla.absolute.point == perla.final.point == perla.best.point == pytest.approx(0.97)
    assert ippo.absolute.point == pytest.approx(0.3)
    assert 0.05 <= ippo.absolute.low < 0.3 < ippo.absolute.high <= 0.5
    assert perla.area.point == pytest.approx(0.97 / 2)
    # 0.9 of the best final interquartile mean, reached at the end by those that reach it.
    assert compared.threshold == pytest.approx(0.9 * 0.97)
    assert (perla.steps_to, perla.reached) == (100, 5)
    assert math.isnan(ippo.steps_to)
    assert ippo.reached == 0
    assert (ippo.failures, perla.failures) == (1, 0)
    assert perla.steps_per_second == pytest.approx(5 * 100 / 120)
    np.testing.assert_allclose(perla.curve.value.point, [0, 0.485, 0.97])
    np.testing.assert_array_equal(perla.curve.seconds, [0, 60, 120])
    np.testing.assert_array_equal(perla.curve.flops, [0, 50e6, 100e6])
    assert perla.curve.value.low.shape == (3,)


def test_the_median_of_steps_counts_never_as_infinite(pair):
    ippo, _ = compare(pair, threshold=0.3).methods
    assert (ippo.steps_to, ippo.reached) == (100, 3)
    ippo, perla = compare(pair, threshold=0.4).methods
    assert math.isnan(ippo.steps_to)
    assert ippo.reached == 2
    assert perla.steps_to == 50


def test_the_default_threshold_lies_below_the_best_where_returns_are_negative(folder):
    runs = load_all([folder("a", "ippo", (-5.0, -5.0)), folder("b", "mappo", (-2.0, -2.0))])
    compared = compare(runs)
    assert compared.threshold == pytest.approx(-2.2)


def test_probabilities_of_improvement_are_of_all_pairs(folder):
    scores = {"ippo": (0.1, 0.2), "mappo": (0.2, 0.3), "perla-ippo": (0.0, 0.0)}
    runs = load_all([folder(algo, algo, final) for algo, final in scores.items()])
    chances = compare(runs).improvement
    assert chances["mappo"]["ippo"].point == pytest.approx(0.875)
    assert chances["perla-ippo"]["mappo"].point == 0.0
    assert set(chances) == set(scores)
    for x, row in chances.items():
        assert set(row) == set(scores) - {x}
        for y, chance in row.items():
            back = chances[y][x]
            np.testing.assert_allclose(chance, [1 - back.point, 1 - back.high, 1 - back.low])


def test_the_optimality_gap_is_the_shortfall_below_the_threshold(pair):
    ippo, perla = compare(pair, threshold=0.97).methods
    # Runs above the threshold count as the threshold.
    assert perla.optimality_gap.point == pytest.approx((0.02 + 0.01) / 5)
    assert ippo.optimality_gap.point == pytest.approx(np.mean([0.97 - x for x in BAD]))
    assert 0 <= perla.optimality_gap.low < perla.optimality_gap.high
    assert "optimality gap to 0.97" in rows(compare(pair, threshold=0.97))[0]


def test_performance_profiles_span_the_scores_of_all_methods(pair):
    compared = compare(pair)
    ippo, perla = compared.methods
    assert (compared.taus[0], compared.taus[-1]) == (0.05, 0.99)
    # No run is above the highest score, and the run with the lowest is not above itself.
    assert (ippo.profile.point[0], perla.profile.point[0]) == (0.8, 1.0)
    assert (ippo.profile.point[-1], perla.profile.point[-1]) == (0.0, 0.0)
    for method in compared.methods:
        expected = [np.mean(method.runs > tau) for tau in compared.taus]
        np.testing.assert_allclose(method.profile.point, expected)
        assert (method.profile.low <= method.profile.point).all()
        assert (method.profile.point <= method.profile.high).all()


@pytest.mark.parametrize("field", ["optimality_gap", "profile"])
def test_gaps_and_profiles_are_those_of_all_tasks_together(folder, field):
    finals = {"ippo": [(0.1, 0.4), (0.8, 1.0)], "mappo": [(0.4, 0.4), (0.5, 0.7)]}
    runs = [
        load(folder(f"{algo}{env}", algo, final, env=env))
        for algo, by_task in finals.items()
        for env, final in zip((TASK, OTHER), by_task, strict=True)
    ]
    compared = compare(runs, threshold=0.9, seed=3)
    for method in compared.methods:
        scores = np.array(finals[method.name]).T
        if field == "optimality_gap":
            expected = stats.bootstrap(lambda x: stats.optimality_gap(x, 0.9), scores, seed=3)
        else:
            expected = stats.performance_profile(scores, compared.taus, seed=3)
        np.testing.assert_allclose(getattr(method, field), expected)


def test_several_tasks_are_pooled(folder):
    runs = load_all(
        [
            *(folder("a", "ippo", (0.0, 0.2)), folder("c", "ippo", (0.8, 1.0), env=OTHER)),
            # The same tasks in another order.
            *(folder("d", "mappo", (0.4, 0.4), env=OTHER), folder("b", "mappo", (0.5, 0.7))),
        ]
    )
    compared = compare(runs)
    ippo, mappo = compared.methods
    assert compared.tasks == (TASK, OTHER)
    np.testing.assert_array_equal(ippo.runs, [[0.0, 0.8], [0.2, 1.0]])
    np.testing.assert_array_equal(mappo.runs, [[0.5, 0.4], [0.7, 0.4]])
    assert ippo.absolute.point == pytest.approx(0.5)
    # Task by task: 0 of 4 pairs, then 4 of 4.
    assert compared.improvement["ippo"]["mappo"].point == 0.5
    assert ippo.failures == 1
    assert ippo.steps_per_second == pytest.approx(400 / 240)
    np.testing.assert_allclose(ippo.curve.value.point, [0, 0.25, 0.5])
    assert "in 2 seeds of 2 tasks" in compared.verdict


def test_computation_is_unknown_unless_every_task_s_is(folder):
    runs = load_all([folder("a", "ippo"), folder("b", "mappo", without=("flops_per_step",))])
    ippo, mappo = compare(runs).methods
    assert ippo.curve.flops is not None
    assert mappo.curve.flops is None


def test_any_metric_can_be_compared(pair):
    compared = compare(pair, metric="return_sampled")
    assert compared.methods[1].absolute.point == pytest.approx(0.97 / 2)
    assert "sampled return" in compared.verdict
    with pytest.raises(UserError, match=r"a: unknown metric 'return_samplde'.*'return_sampled'"):
        compare(pair, metric="return_samplde")


# --- The sentence -------------------------------------------------------------------------------


def test_the_verdict_names_the_better_method_and_its_evidence(pair):
    ippo, perla = compare(pair).methods
    verdict = compare(pair).verdict
    assert verdict.startswith(
        "perla-ippo is better than ippo in 5 seeds: absolute greedy return "
        f"0.970 [{perla.absolute.low:.3f}, {perla.absolute.high:.3f}] against "
        f"0.300 [{ippo.absolute.low:.3f}, {ippo.absolute.high:.3f}], area under the curve 0.485 ["
    )
    assert verdict.endswith("probability of improvement 1.000 [1.000, 1.000].")
    assert compare(pair[::-1]).verdict == verdict, "the order of methods changes nothing"


def test_the_verdict_admits_that_intervals_overlap(folder):
    runs = load_all([folder("a", "ippo", GOOD), folder("b", "mappo", (0.94, *GOOD[1:]))])
    verdict = compare(runs).verdict
    assert verdict.startswith(
        "ippo cannot be told apart from mappo in 5 seeds: the intervals overlap (absolute"
    )


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "in 1 seed: fewer than 3 are too few"), (2, "in 2 seeds: ")]
)
def test_few_seeds_are_not_judged(folder, seeds, said):
    runs = load_all([folder("a", "ippo", BAD[:seeds]), folder("b", "mappo", GOOD[:seeds])])
    verdict = compare(runs).verdict
    assert "mappo cannot be told apart from ippo" in verdict
    assert said in verdict


def test_one_sentence_about_many_methods(folder):
    scores = {"ippo": BAD, "mappo": GOOD, "perla-ippo": [x + 0.005 for x in GOOD]}
    runs = load_all([folder(algo, algo, tuple(final)) for algo, final in scores.items()])
    verdict = compare(runs).verdict
    assert verdict.startswith(
        "perla-ippo is better than ippo, and cannot be told apart from mappo in 5 seeds: absolute "
        "greedy return 0.975 ["
    )
    assert "against ippo's 0.300 [" in verdict
    assert "and mappo's 0.970 [" in verdict
    assert "probability of improvement 1.000 [1.000, 1.000] over ippo and " in verdict


def faster(run):
    """Return `run` with a curve that is at its final value from the start."""
    final = run.metrics["return"][:, -1:]
    curve = np.broadcast_to(final, run.metrics["return"].shape)
    return replace(run, metrics=run.metrics | {"return": curve})


def test_learning_faster_is_told_apart_from_ending_better(folder):
    runs = load_all([folder("a", "ippo", GOOD), folder("b", "mappo", GOOD)])
    assert "mappo ends no better but learns faster than ippo" in (
        compare([runs[0], faster(runs[1])]).verdict
    )
    runs = load_all([folder("c", "ippo", BAD), folder("d", "mappo", [x - 0.4 for x in GOOD])])
    runs = [faster(runs[0]), runs[1]]
    runs[0] = replace(runs[0], metrics=runs[0].metrics | {"return": np.ones((5, 3))})
    assert "mappo ends better but learns more slowly than ippo" in compare(runs).verdict


# --- Fairness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 200}, "steps = 100 and 200; --until 100 compares all up to there"),
        ({"eval_episodes": 64}, "eval_episodes = 32 and 64"),
        ({"absolute_episodes": 64}, "absolute_episodes = 320 and 64"),
        ({"rules": {"size": 5, "penalty": 0.1}}, r"rules\.penalty = 0\.0 and 0\.1"),
        ({"rules": {"size": 5}}, r"rules\.penalty = 0\.0 and None"),
        ({"env": OTHER}, f"ippo has no run on {OTHER}|mappo has no run on {TASK}"),
        ({"algo": "ippo"}, "both are ippo on"),
    ],
)
def test_unfair_comparisons_are_refused(folder, change, said):
    runs = load_all([folder("a"), folder("b", **({"algo": "mappo"} | change))])
    with pytest.raises(UserError, match=said) as raised:
        compare(runs)
    assert str(runs[0].path) in str(raised.value)
    assert str(runs[1].path) in str(raised.value)


def test_numbers_left_open_are_those_that_were_used(folder):
    runs = load_all([folder("a"), folder("b", "mappo", eval_episodes=32, absolute_episodes=320)])
    assert compare(runs).budget == Budget(100, 5, 2, 32, 320)


def test_numbers_that_an_older_run_did_not_record_are_not_held_against_it(folder):
    runs = load_all([folder("a", without=("evaluations",)), folder("b", "mappo")])
    assert runs[0].budget.eval_episodes is None
    assert compare(runs).budget == Budget(100, 5, 2, 32, 320)


def test_methods_may_have_different_numbers_of_seeds(folder):
    runs = load_all([folder("a"), folder("b", "mappo", GOOD[:3])])
    compared = compare(runs)
    assert [method.seeds for method in compared.methods] == [5, 3]
    assert [row["seeds"] for row in rows(compared)] == ["5", "3"]
    assert "in 3 to 5 seeds" in compared.verdict
    other = [folder("c", env=OTHER), folder("d", "mappo", GOOD[:4], env=OTHER)]
    with pytest.raises(UserError, match=r"b and .*d: seeds = 3 and 4"):
        compare([*runs, *load_all(other)])


def test_unfinished_runs_are_refused(folder, pair):
    (pair[1].path / "summary.json").unlink()
    with pytest.raises(UserError, match="b: not finished; `perla resume"):
        compare([pair[0], load(pair[1].path)])


def test_one_method_alone_has_its_numbers_and_no_rival(pair):
    compared = compare(pair[1:])
    assert compared.verdict.startswith("perla-ippo in 5 seeds: absolute greedy return 0.970 [")
    assert compared.verdict.endswith("there is no other method to compare it with.")
    (row,) = rows(compared)
    assert row["seeds"] == "5"
    assert not any(name.startswith("P(") for name in row)
    with pytest.raises(UserError, match="nothing to compare"):
        compare([])


def test_a_label_makes_two_methods_of_one_algorithm(folder):
    runs = load_all([folder("a"), folder("b", preset="epymarl")])
    names = [method.name for method in compare([runs[0], replace(runs[1], method="b")]).methods]
    assert names == ["ippo", "b"]


# --- Output -------------------------------------------------------------------------------------


def test_a_comparison_is_strict_json(pair):
    facts = json.loads(json.dumps(compare(pair).as_dict(), allow_nan=False))
    ippo, perla = facts["methods"]
    assert ippo["steps_to"] is None
    assert perla["absolute"]["point"] == pytest.approx(0.97)
    assert perla["curve"]["steps"] == [0, 50, 100]
    assert facts["improvement"]["perla-ippo"]["ippo"] == {"point": 1.0, "low": 1.0, "high": 1.0}
    assert facts["budget"]["seeds"] == 5
    assert perla["optimality_gap"]["point"] == pytest.approx(0)
    assert len(facts["taus"]) == len(perla["profile"]["low"]) == len(perla["profile"]["point"])
    assert facts["verdict"] == compare(pair).verdict


def test_the_same_runs_give_the_same_numbers(folder):
    scores = np.random.default_rng(0).uniform(size=(2, 20)).tolist()
    runs = load_all([folder("a", final=scores[0]), folder("b", "mappo", scores[1])])
    assert compare(runs).as_dict() == compare(runs).as_dict()
    assert compare(runs).as_dict() != compare(runs, seed=1).as_dict()


def test_rows_are_a_line_for_each_method(pair):
    ippo, perla = rows(compare(pair))
    assert list(ippo) == list(perla)
    assert perla["method"] == "perla-ippo"
    assert perla["absolute greedy return"].startswith("0.970 [")
    assert perla["optimality gap to 0.873"] == "0.000 [0.000, 0.000]"
    assert ippo["steps to 0.873"] == "– (0 of 5)"
    assert perla["steps to 0.873"] == "100 (5 of 5)"
    assert (ippo["failures"], perla["failures"]) == ("1 of 5", "0 of 5")
    assert ippo["P(better than ippo)"] == "–"
    assert perla["P(better than ippo)"] == "1.000 [1.000, 1.000]"


def test_marl_eval_files_are_merged_under_their_labels(folder):
    runs = load_all([folder("a"), folder("b", "mappo"), folder("c", env=OTHER)])
    merged = marl_eval([replace(runs[0], method="baseline"), *runs[1:]])
    assert merged == {
        "lbf": {
            TASK[4:]: {
                "baseline": json.loads((runs[0].path / "marl_eval.json").read_text())["lbf"][
                    TASK[4:]
                ]["ippo"],
                "mappo": merged["lbf"][TASK[4:]]["mappo"],
            },
            OTHER[4:]: {"ippo": merged["lbf"][OTHER[4:]]["ippo"]},
        }
    }
    entry = merged["lbf"][TASK[4:]]["mappo"]["seed_0"]
    assert entry["step_1"]["step_count"] == 50
    assert entry["absolute_metrics"]["return"] == [0.95]


def test_marl_eval_has_one_run_a_method_on_a_task(folder, pair):
    with pytest.raises(UserError, match="both are ippo"):
        marl_eval([pair[0], load(folder("c"))])


def test_the_csv_has_every_number_in_full(pair):
    compared = compare(pair)
    ippo, perla = csv.DictReader(io.StringIO(as_csv(compared)))
    assert float(perla["absolute"]) == compared.methods[1].absolute.point
    assert float(ippo["area high"]) == compared.methods[0].area.high
    assert (ippo["method"], ippo["seeds"], ippo["failures"]) == ("ippo", "5", "1")
    assert (ippo["steps_to_threshold"], ippo["P(better than ippo)"]) == ("", "")
    assert float(perla["P(better than ippo)"]) == 1


def test_tables_for_papers_have_the_rows_of_the_terminal(folder):
    runs = load_all([folder("a"), folder("b", "mappo"), folder("c", "perla-ippo")])
    runs[1] = replace(runs[1], method="mappo lr_1|50%")
    compared = compare(runs)
    text = as_latex(compared)
    assert r"mappo lr\_1|50\%" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [line.count(" & ") for line in body] == [len(rows(compared)[0]) - 1] * 3
    assert all(line.endswith(r" \\") for line in body)
    assert "0.970 {\\small [" in text
    markdown = as_markdown(compared)
    assert r"| mappo lr\_1\|50% |" in markdown
    assert markdown.splitlines()[-1].replace("\\", "") == compared.verdict


def test_every_pair_of_methods_has_its_probability_of_improvement(folder):
    scores = {"ippo": (0.1, 0.2), "mappo": (0.2, 0.3), "perla-ippo": (0.0, 0.0)}
    compared = compare(load_all([folder(algo, algo, final) for algo, final in scores.items()]))
    table = chances(compared)
    assert [row["ippo"][:5] for row in table] == ["–", "0.875", "0.000"]
    assert [row["mappo"][:5] for row in table] == ["0.125", "–", "0.000"]
