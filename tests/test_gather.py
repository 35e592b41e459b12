"""Finished runs: found, named by the settings that differ, joined, and put on one grid."""

import json
from dataclasses import replace

import numpy as np
import pytest

from perla.analysis.align import align, cut, is_same_grid
from perla.analysis.compare import compare
from perla.analysis.gather import gather
from perla.analysis.load import load
from perla.errors import UserError
from run_folders import BAD, GOOD, TASK, write_run

OTHER = "lbf:Foraging-8x8-2p-2f-v2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda name, *arguments, **options: str(
        write_run(tmp_path / name, *arguments, **options)
    )


def seeds(*sources):
    """Method → the seeds that a comparison counts."""
    compared = compare(gather(sources).runs)
    return {method.name: method.seeds for method in compared.methods}


# --- Names --------------------------------------------------------------------------------------


def test_runs_that_differ_in_a_setting_are_named_by_it(folder):
    a, b = folder("a", settings={"lr": 1e-3}), folder("b", settings={"lr": 1e-4})
    assert seeds(a, b) == {"ippo lr=0.001": 5, "ippo lr=0.0001": 5}


def test_a_variant_is_named_by_its_tag_and_its_own_settings(folder):
    a = folder("a", "perla-ippo", settings={"estimator": "sampled", "num_samples": 5})
    b = folder("b", "perla-ippo", settings={"estimator": "sampled", "num_samples": 7})
    c = folder("c", "perla-ippo", settings={"estimator": "exact"})
    assert list(seeds(a, b)) == ["perla-ippo num_samples=5", "perla-ippo num_samples=7"]
    assert [name.split()[1] for name in seeds(a, c)] == ["estimator=sampled", "estimator=exact"]


def test_a_preset_that_tells_runs_apart_is_their_name(folder):
    assert list(seeds(folder("a"), folder("b", preset="epymarl"))) == [
        "ippo default",
        "ippo epymarl",
    ]


def test_of_many_settings_a_name_has_as_many_as_tell_runs_apart(folder):
    many = {"lr": 1e-3, "gamma": 0.9, "gae_lambda": 0.5, "ent_coef": 0.1, "num_envs": 4}
    names = list(seeds(folder("a"), folder("b", settings=many)))
    assert len(names) == 2
    assert all(name.count("=") == 1 for name in names)


def test_settings_that_differ_between_tasks_only_name_nothing(folder):
    a = folder("a", settings={"lr": 1e-3})
    b = folder("b", env=OTHER, settings={"lr": 1e-4})
    runs = [*gather([a, b]).runs]
    assert [(run.method, run.task) for run in runs] == [("ippo", TASK), ("ippo", OTHER)]


def test_a_name_before_a_path_names_its_method(folder):
    a, b = folder("a"), folder("b", settings={"lr": 1e-4})
    assert list(seeds(f"mine={a}", b)) == ["mine", "ippo"]
    assert list(seeds(f"mine={a}", f"mine={b}")) == ["mine lr=0.001", "mine lr=0.0001"]


def test_an_equals_sign_in_a_folder_s_name_is_no_name(folder):
    path = folder("ippo lr=0.1")
    assert seeds(path) == {"ippo": 5}
    assert seeds(f"x={path}") == {"x": 5}


# --- Seeds --------------------------------------------------------------------------------------


def test_equal_runs_with_other_seeds_are_one_method(folder):
    a, b = folder("a", final=GOOD[:1]), folder("b", final=GOOD[1:3], seeds=(2, 1))
    (run,) = gather([b, a]).runs
    assert run.seeds == (0, 1, 2)
    assert run.budget.seeds == 3
    np.testing.assert_allclose(run.absolute["return"], [0.95, 0.97, 0.96])
    np.testing.assert_allclose(run.metrics["return"][:, -1], [0.95, 0.97, 0.96])
    np.testing.assert_allclose(run.wall_seconds, [0, 120, 240])
    assert seeds(a, b) == {"ippo": 3}


def test_the_same_folder_twice_counts_once(folder):
    a = folder("a")
    assert seeds(a, a, a + "/") == {"ippo": 5}
    assert gather([a, a]).notes == []


def test_a_folder_inside_another_counts_once(folder, tmp_path):
    folder("outer/a")
    folder("outer/deep/b", "mappo")
    outer, inner = str(tmp_path / "outer"), str(tmp_path / "outer/deep")
    assert seeds(outer, inner) == {"ippo": 5, "mappo": 5}
    assert seeds(outer, f"mine={inner}") == {"ippo": 5, "mine": 5}


def test_a_seed_that_two_equal_runs_have_is_counted_once_and_said(folder):
    a, b = folder("a", final=GOOD[:2]), folder("b", final=BAD[:2], seeds=(1, 2))
    gathered = gather([a, b])
    (run,) = gathered.runs
    np.testing.assert_allclose(run.absolute["return"], [0.95, 0.96, 0.2])
    (note,) = gathered.notes
    assert note.startswith(f"{b}: seed 1 left out, as {a} or a run")


def test_equal_runs_of_other_budgets_are_not_joined(folder):
    a = folder("a")
    b = folder("b", steps=200, seeds=range(5, 10))
    with pytest.raises(UserError, match=r"a and .*b: steps = 100 and 200"):
        gather([a, b])
    c = folder("c", seeds=range(5, 10), rules={"size": 5, "penalty": 0.5})
    with pytest.raises(UserError, match=r"rules\.penalty = 0\.0 and 0\.5"):
        gather([a, c])


def test_an_unreadable_run_is_named_and_the_others_are_read(folder, tmp_path):
    folder("all/a")
    b = folder("all/b", "mappo")
    (tmp_path / "all/b/metrics.jsonl").write_text("{]\n")
    gathered = gather([tmp_path / "all"])
    assert [run.method for run in gathered.runs] == ["ippo"]
    assert "metrics.jsonl: damaged" in gathered.failures[b]
    (tmp_path / "all/a/metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"a/metrics\.jsonl.*\(and 1 more such sources\)"):
        gather([tmp_path / "all"])


@pytest.mark.parametrize("word", ["nowhere", "runs/nowhere", "x=runs/nowhere"])
def test_a_missing_folder_is_called_that(folder, word):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        gather([word])


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt: expected a folder"):
        gather([tmp_path / "notes.txt"])
    with pytest.raises(UserError, match="no run folder, nor is there one below"):
        gather([tmp_path])


# --- Grids --------------------------------------------------------------------------------------


def test_unequal_grids_are_interpolated_at_the_steps_of_the_coarser(folder):
    fine, coarse = load_two(folder)
    aligned, notes = align([fine, coarse])
    np.testing.assert_array_equal(aligned[0].steps, [0, 50, 100])
    # Straight curves: the interpolated values are those of the line.
    np.testing.assert_allclose(aligned[0].metrics["return"][0], [0, 0.475, 0.95])
    np.testing.assert_array_equal(aligned[0].absolute["return"], fine.absolute["return"])
    assert aligned[1].metrics["return"].tolist() == coarse.metrics["return"].tolist()
    assert notes == [
        "evaluations are at different steps: all curves are interpolated at the 3 steps of "
        f"{coarse.path} from 0 to 100"
    ]
    compared = compare([fine, coarse])
    assert compared.notes == tuple(notes)
    assert json.loads(json.dumps(compared.as_dict()))["notes"] == notes


def load_two(folder):
    return load_all(folder("fine", num_evaluations=4), folder("coarse", "mappo"))


def load_all(*paths):
    return [run for path in paths for run in gather([path]).runs]


def test_the_best_of_an_interpolated_curve_is_among_its_points(folder):
    fine, coarse = load_two(folder)
    peak = fine.metrics["return"].copy()
    peak[:, 1] = 5.0  # At step 25, which the coarse grid does not have.
    fine = replace(fine, metrics=fine.metrics | {"return": peak})
    (resampled, _), _ = align([fine, coarse])
    np.testing.assert_allclose(resampled.best["return"], GOOD)
    np.testing.assert_allclose(resampled.best["step"], 100)


def test_equal_plans_stay_as_they_are_although_updates_end_later(folder):
    a, b = load_all(folder("a"), folder("b", "mappo"))
    late = replace(b, steps=np.array([0, 62, 100]))
    assert align([a, late]) == ([a, late], [])
    unknown = replace(late, budget=replace(b.budget, steps=None))
    assert not is_same_grid(a, unknown)
    assert is_same_grid(a, replace(unknown, steps=np.array([0, 54, 101])))


def test_curves_are_cut_at_a_common_step(folder):
    short, long = folder("short"), folder("long", "mappo", steps=200, num_evaluations=4)
    runs = load_all(short, long)
    with pytest.raises(UserError, match="steps = 100 and 200; --until 100"):
        compare(runs)
    shortened, notes = cut(runs, 100)
    compared = compare(shortened)
    assert notes == [f"{long}: cut at step 100 of 200"]
    assert compared.score == "final"
    assert [method.absolute.point for method in compared.methods] == pytest.approx([0.97, 0.485])
    assert "final greedy return 0.970" in compared.verdict
    with pytest.raises(UserError, match="short: ends at step 100, before --until 200"):
        cut(runs, 200)


def test_runs_of_unknown_budgets_may_end_an_evaluation_apart(folder):
    a, b = load_all(folder("a"), folder("b", "mappo"))
    free = replace(b, budget=replace(b.budget, steps=None), steps=b.steps * 1.5)
    aligned, _ = align([a, free])
    np.testing.assert_array_equal(aligned[1].steps, [0, 50, 100])
    with pytest.raises(UserError, match=r"end at steps 100 and 210; --until 100 compares all"):
        align([a, replace(free, steps=b.steps * 2.1)])
    with pytest.raises(UserError, match=r"first end at step 100, .* second begin at step 110"):
        align([a, replace(free, steps=np.array([110.0, 130, 150]))])


def test_joined_seeds_with_other_grids_are_aligned_and_said(folder):
    a, b = (
        folder("a", final=GOOD[:2]),
        folder("b", final=GOOD[2:4], seeds=(2, 3), num_evaluations=4),
    )
    gathered = gather([a, b])
    assert [run.seeds for run in gathered.runs] == [(0, 1, 2, 3)]
    assert "interpolated at the 3 steps" in gathered.notes[0]


def test_an_unfinished_run_is_refused_by_the_comparison(folder, tmp_path):
    a = folder("a")
    (tmp_path / "a/summary.json").unlink()
    assert not load(tmp_path / "a").finished
    with pytest.raises(UserError, match="a: not finished"):
        compare(gather([a]).runs)
