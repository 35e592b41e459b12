"""Other programs' results: small files in their formats, as those programs write them."""

import json
import struct

import numpy as np
import pytest

from perla.analysis.compare import compare
from perla.analysis.gather import gather
from perla.analysis.importers.folder import write
from perla.analysis.importers.series import Options, method_and_seed
from perla.cli import main
from perla.errors import UserError
from perla.methods.recipes import make
from run_folders import TASK, write_run

LBF = "lbforaging:Foraging-5x5-2p-1f-v2"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- EPyMARL's sacred ---------------------------------------------------------------------------


def numpy_float(value):
    """A number of NumPy as sacred writes it into info.json."""
    return {"dtype": "float64", "py/object": "numpy.float64", "value": value}


def write_sacred(folder, returns=(0.1, 0.5, 0.9), *, info=False, steps=None, **config):
    """A run folder of sacred as EPyMARL's logger fills it."""
    folder.mkdir(parents=True)
    config = {
        "name": "qmix", "env": "gymma", "env_args": {"key": LBF, "time_limit": 50}, "seed": 0,
        "action_selector": "epsilon_greedy", "test_greedy": True, "common_reward": True,
        "reward_scalarisation": "sum", "batch_size_run": 1, "test_nepisode": 20, "lr": 0.0005,
        "label": "default_label",
    } | config  # fmt: skip
    steps = [10 + 50 * k for k in range(len(returns))] if steps is None else steps
    stamps = [f"2026-11-30T07:00:{k:02d}.500000" for k in range(len(returns))]
    curves = {
        "test_return_mean": returns,
        "test_ep_length_mean": [30.0 - k for k in range(len(returns))],
        "return_mean": returns[:1],
    }
    if info:
        text = {f"{name}_T": steps[: len(values)] for name, values in curves.items()}
        text |= {name: [numpy_float(value) for value in row] for name, row in curves.items()}
        (folder / "info.json").write_text(json.dumps(text))
    else:
        text = {
            name: {"steps": steps[: len(row)], "timestamps": stamps[: len(row)], "values": row}
            for name, row in curves.items()
        }
        (folder / "metrics.json").write_text(json.dumps(text))
        (folder / "info.json").write_text("{}")
    run = {"start_time": "2026-11-30T06:59:58.500000", "status": "COMPLETED"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("info", [False, True])
def test_a_sacred_folder_is_read_with_its_meaning(here, info):
    gathered = gather([write_sacred(here / "sacred/qmix/1", info=info, seed=3)])
    (run,) = gathered.runs
    assert (run.source, run.method, run.task, run.seeds) == ("EPyMARL", "qmix", TASK, (3,))
    np.testing.assert_array_equal(run.steps, [10, 60, 110])
    np.testing.assert_array_equal(run.metrics["return"], [[0.1, 0.5, 0.9]])
    np.testing.assert_array_equal(run.metrics["episode_length"], [[30, 29, 28]])
    assert run.best["step"] == 110
    assert run.absolute == {}
    if info:
        assert np.isnan(run.wall_seconds).all()
    else:
        np.testing.assert_array_equal(run.wall_seconds, [2, 3, 4])
    assert gathered.notes == [
        "EPyMARL: steps are t_env: transitions summed over the 1 parallel environment(s)",
        "EPyMARL: returns are test_return_mean: the mean of 20 test episodes with greedy actions, "
        "of rewards summed over agents",
    ]


def test_sacred_s_seeds_of_equal_settings_are_one_method(here):
    for number in (1, 2, 3):
        write_sacred(here / f"qmix/{number}", seed=10 + number, label=f"run {number}")
    write_sacred(here / "other/1", lr=0.001)
    runs = gather([here]).runs
    assert {(run.method, run.seeds) for run in runs} == {
        ("qmix lr=0.0005", (11, 12, 13)),
        ("qmix lr=0.001", (0,)),
    }


def test_policies_that_are_sampled_have_sampled_returns(here):
    mappo = write_sacred(here / "m", name="mappo", action_selector="soft_policies")
    (run,) = gather([mappo]).runs
    assert "return" not in run.metrics
    np.testing.assert_array_equal(run.final["return_sampled"], [0.9])
    ours = write_run(here / "ours", final=(0.5, 0.6, 0.7))
    compared = compare(gather([ours, f"epymarl={mappo}"]).runs)
    assert compared.metric == "return_sampled"
    assert "has no greedy return, so sampled returns are compared" in compared.notes[0]
    assert [method.seeds for method in compared.methods] == [3, 1]


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"env": "sc2", "env_args": {"map_name": "3m"}}, "smac:3m"),
        ({"env": "smaclite", "env_args": {"map_name": "MMM2"}}, "smac:lite-MMM2"),
        ({"env_args": {"key": "rware:rware-tiny-2ag-v2"}}, "rware:rware-tiny-2ag-v2"),
        ({"env": "stag_hunt", "env_args": {"map_name": "big"}}, "stag_hunt:big"),
    ],
)
def test_environments_have_perla_s_ids_where_perla_has_them(here, config, task):
    (run,) = gather([write_sacred(here / "run", **config)]).runs
    assert run.task == task


def test_individual_rewards_and_runs_that_failed_are_said(here):
    folder = write_sacred(here / "run", common_reward=False, reward_scalarisation="mean")
    (folder / "run.json").write_text('{"status": "INTERRUPTED"}')
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace("test_return", "test_total_return"))
    notes = gather([folder]).notes
    assert any("test_total_return_mean" in note and "summed over agents" in note for note in notes)
    assert f"EPyMARL: {folder}: its status is INTERRUPTED" in notes


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.json", "{", "metrics.json: damaged"),
        ("metrics.json", "{}", "no evaluation"),
        ("metrics.json", '{"test_return_mean": {"steps": [1], "values": []}}', "0 values of test_"),
        ("metrics.json", '{"test_return_mean": {"steps": [1], "values": ["x"]}}', "is no number"),
        ("metrics.json", '{"test_return_mean": {"steps": [1], "values": [NaN]}}', "damaged"),
        ("metrics.json", '{"test_return_mean": {"steps": [-1], "values": [1]}}', "a step is not"),
        ("config.json", "[]", "config.json: damaged"),
    ],
)
def test_damage_of_a_sacred_folder_is_named(here, file, content, said):
    folder = write_sacred(here / "run")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        gather([folder])
    assert str(folder) in str(raised.value)


# --- TensorBoard --------------------------------------------------------------------------------


def write_events(folder, scalars):
    """Event files by tensorboardX's writer, as programs write them."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for tag, points in scalars.items():
            for step, value in points.items():
                writer.add_scalar(tag, value, step)
    return folder


def test_event_files_are_read_by_their_tag(here):
    points = {0: 0.0, 100: 0.5, 200: 1.0}
    for seed in (1, 2):
        write_events(here / f"tb/ppo_seed{seed}", {"eval/score": points, "loss": {0: 3.0}})
    with pytest.raises(UserError, match=r"which metric is the return\? .*: eval/score, loss"):
        gather([here / "tb"])
    with pytest.raises(UserError, match="did you mean 'eval/score'"):
        gather([here / "tb"], Options(tag="eval/scores"))
    gathered = gather([here / "tb"], Options(tag="eval/score", step_factor=8))
    (run,) = gathered.runs
    assert (run.source, run.method, run.seeds) == ("TensorBoard", "ppo", (1, 2))
    np.testing.assert_array_equal(run.steps, [0, 800, 1600])
    np.testing.assert_allclose(run.metrics["return"], [[0, 0.5, 1]] * 2)
    assert "TensorBoard: steps are multiplied by 8, as --step-factor says" in gathered.notes


def test_scalars_of_tensorflow_and_of_restarted_programs_are_read(here):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    (here / "tb").mkdir()
    writer = EventsWriter(str(here / "tb/events"))
    for step, value in ((0, 1.0), (10, 9.0), (20, 9.0)):
        summary = Summary()
        tensor = summary.value.add(tag="return").tensor
        tensor.dtype = 1
        if step:
            tensor.tensor_content = struct.pack("<f", value)
        else:
            tensor.float_val.append(value)
        writer.write_event(Event(wall_time=100.0 + step, step=step, summary=summary))
    log = SessionLog(status=SessionLog.START)
    writer.write_event(Event(wall_time=130.0, step=10, session_log=log))
    summary = Summary()
    summary.value.add(tag="return", simple_value=5.0)
    writer.write_event(Event(wall_time=140.0, step=15, summary=summary))
    writer.flush()
    writer.close()
    (run,) = gather([here / "tb"]).runs
    np.testing.assert_array_equal(run.steps, [0, 15])
    np.testing.assert_array_equal(run.metrics["return"], [[1, 5]])
    np.testing.assert_array_equal(run.wall_seconds, [0, 40])


def test_a_record_that_is_being_written_is_left_out_and_a_damaged_one_refused(here):
    folder = write_events(here / "tb", {"return": {0: 1.0, 10: 2.0}})
    (path,) = folder.glob("*.tfevents.*")
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    (run,) = gather([folder]).runs
    np.testing.assert_array_equal(run.steps, [0])
    broken = bytearray(data)
    broken[-6] ^= 1
    path.write_bytes(bytes(broken))
    with pytest.raises(UserError, match=r"damaged .a wrong checksum at byte"):
        gather([folder])


def test_perla_s_own_event_files_are_read_too(here):
    from perla.runs.spec import Run
    from perla.runs.store import Folder
    from perla.runs.tensorboard import TensorBoard

    (here / "own").mkdir()
    run = Run(env=TASK, algo="ippo", config=make("ippo"), steps=100)
    board = TensorBoard(Folder(here / "own"), run, [])
    for step in (0, 50):
        board.consume([{"seed": 0, "evaluation": 0, "step": step, "return": step / 100}])
    (run,) = gather([here / "own"]).runs
    np.testing.assert_array_equal(run.metrics["return"], [[0, 0.5]])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["qmix_seed3"], ("qmix", 3)),
        (["seed_12", "mappo"], ("mappo", 12)),
        (["seed=4_vdn"], ("vdn", 4)),
        (["mappo"], ("mappo", None)),
        (["seedling"], ("seedling", None)),
        (["ppo-seed-0-fast"], ("ppo fast", 0)),
    ],
)
def test_names_of_runs_say_method_and_seed(words, found):
    assert method_and_seed(words) == found


# --- marl-eval ----------------------------------------------------------------------------------


def mava(seed, returns, absolute=None):
    """A file of Mava's logger: one seed."""
    entry = {
        f"step_{k}": {"step_count": 30 * (k + 1), "elapsed_time": 2.0 * k,
                      "steps_per_second": [9.0], "mean_episode_return": [value]}
        for k, value in enumerate(returns)
    }  # fmt: skip
    if absolute is not None:
        entry["absolute_metrics"] = {"mean_episode_return": [absolute], "steps_per_second": [9.0]}
    return {"Matrax": {"Climbing-stateless-v0": {"rec_ippo": {f"seed_{seed}": entry}}}}


def test_mava_s_files_are_joined_to_one_method(here):
    for seed in (0, 1):
        (here / f"json/{seed}").mkdir(parents=True)
        text = json.dumps(mava(seed, [1.0, 3.0 + seed], absolute=4.0 + seed))
        (here / f"json/{seed}/metrics.json").write_text(text)
    gathered = gather([here / "json"])
    (run,) = gathered.runs
    assert (run.method, run.task, run.seeds) == (
        *("rec_ippo", "Matrax:Climbing-stateless-v0"),
        (0, 1),
    )
    np.testing.assert_array_equal(run.steps, [30, 60])
    np.testing.assert_array_equal(run.metrics["return"], [[1, 3], [1, 4]])
    np.testing.assert_array_equal(run.absolute["return"], [4, 5])
    compared = compare([run])
    assert compared.score == "absolute"
    assert "absolute return 4.500" in compared.verdict, "the file does not say: greedy"
    (here / "one.json").write_text(json.dumps(mava(3, [1.0, 2.0])))
    options = Options(tasks={"Matrax:Climbing-stateless-v0": "matrix:climbing"})
    assert gather([here / "one.json"], options).runs[0].task == "matrix:climbing"


def test_marl_eval_s_own_example_is_read(here):
    seeds = {
        name: {
            "STEP_1": {"step_count": 10, "return": [1, 2, 3, 4], "win_rate": [0.8]},
            "STEP_10": {"step_count": 100, "return": [3, 1, 6, 4], "win_rate": [0.4]},
            "STEP_2": {"step_count": 20, "return": [1, 2, 5, 2], "win_rate": [0.8]},
            "absolute_metrics": {"return": [5, 8, 4, 1], "win_rate": [0.2]},
        }
        for name in ("43289", "42")
    }
    (here / "x.json").write_text(json.dumps({"env_1": {"task_1": {"algo_1": seeds}}}))
    (run,) = gather([here / "x.json"]).runs
    assert run.seeds == (42, 43289)
    np.testing.assert_array_equal(run.steps, [10, 20, 100])
    np.testing.assert_array_equal(run.metrics["return"][0], [2.5, 2.5, 3.5])
    np.testing.assert_array_equal(run.absolute["return"], [4.5, 4.5])
    np.testing.assert_array_equal(run.absolute["win_rate"], [0.2, 0.2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "damaged"),
        ("{}", "no results"),
        ('{"e": {"t": {"a": {"seed_0": {}}}}}', r"e\.t\.a\.seed_0: no step"),
        ('{"e": {"t": {"a": {"seed_0": {"step_0": {"return": [1]}}}}}}', "no step_count"),
    ],
)
def test_damage_of_a_marl_eval_file_is_named(here, text, said):
    (here / "x.json").write_text(text)
    with pytest.raises(UserError, match=said):
        gather([here / "x.json"])


# --- CSV ----------------------------------------------------------------------------------------


def test_a_csv_with_perla_s_columns_needs_no_mapping(here):
    rows = ["method,task,seed,step,return,win_rate"]
    rows += [
        f"a,{TASK},{seed},{step},{step / 10 + seed},0.5" for seed in (0, 1) for step in (0, 10)
    ]
    rows += [f"b,{TASK},0,{step},{step},0.5" for step in (10, 0)]
    (here / "r.csv").write_text("\n".join(rows))
    a, b = gather([here / "r.csv"]).runs
    assert (a.method, a.seeds, b.method, b.seeds) == ("a", (0, 1), "b", (0,))
    np.testing.assert_array_equal(a.metrics["return"], [[0, 1], [1, 2]])
    np.testing.assert_array_equal(b.metrics["return"], [[0, 10]])
    assert "win_rate" not in a.metrics


def test_columns_of_a_csv_are_mapped(here):
    (here / "r.csv").write_text("t,score,won\n0,1.5,0\n5,2.5,1\n")
    with pytest.raises(
        UserError, match=r"no column 'step'; name it by --column step=COLUMN, one of: t"
    ):
        gather([here / "r.csv"])
    with pytest.raises(UserError, match="--column step=tt: unknown column 'tt'; did you mean 't'"):
        gather([here / "r.csv"], Options(columns={"step": "tt"}))
    options = Options(columns={"step": "t", "return": "score", "win_rate": "won"})
    (run,) = gather([f"mine={here / 'r.csv'}"], options).runs
    assert run.method == "mine"
    np.testing.assert_array_equal(run.metrics["win_rate"], [[0, 1]])
    (here / "r.csv").write_text("step,return\n0,x\n")
    with pytest.raises(UserError, match=r"column 'return': 'x' is no number"):
        gather([here / "r.csv"])


def test_a_chart_of_weights_and_biases_has_a_column_for_each_run(here):
    names = ['"Step"']
    for run in ("mappo_seed0", "mappo_seed1", "Group: qmix"):
        for end in ("", "__MIN", "__MAX"):
            names.append(f'"{run} - returned_episode_returns{end}"')
    rows = [
        ",".join(names),
        '"0","1","1","1","2","2","2","3","1","5"',
        '"10","2","2","2","","","","4","1","5"',
        '"20","3","3","3","4","4","4","5","1","5"',
    ]
    (here / "wandb.csv").write_text("\n".join(rows))
    gathered = gather([here / "wandb.csv"], Options(step_factor=1000))
    runs = {run.method: run for run in gathered.runs}
    assert set(runs) == {"mappo", "qmix"}
    assert runs["qmix"].metrics["return"].tolist() == [[3, 4, 5]]
    assert runs["mappo"].seeds == (0, 1)
    np.testing.assert_array_equal(runs["mappo"].steps, [0, 20_000])
    assert any("axis 'Step', which counts logged rows" in note for note in gathered.notes)
    assert any(
        "'Group: qmix' is a group's mean and counts as one seed" in n for n in gathered.notes
    )


# --- Beside perla's runs ------------------------------------------------------------------------


def test_a_run_and_an_epymarl_folder_are_compared_from_the_command_line(here, capsys):
    write_run(here / "ours", final=(0.5, 0.6, 0.7))
    write_sacred(here / "sacred/qmix/1", steps=[0, 40, 90])
    assert main(["compare", "ours", "sacred", "--out", "both", "--quiet"]) == 0
    out, error = capsys.readouterr()
    assert "in 1 to 3 seeds" in out
    assert "EPyMARL: steps are t_env" in error
    assert "perla: steps are transitions summed over the parallel environments" in error
    assert "has no absolute metric, so the last evaluation is the score of all" in error
    assert "interpolated at the 3 steps" in error
    summary = json.loads((here / "both/summary.json").read_text())
    assert [(m["name"], m["seeds"]) for m in summary["methods"]] == [("ippo", 3), ("qmix", 1)]
    assert {path.name for path in (here / "both").iterdir()} >= {
        *("table.csv", "table.md", "table.tex", "profiles.png", "comparison.svg", "marl_eval.json")
    }


def test_a_source_without_an_environment_has_that_of_the_others(here, capsys):
    ours = write_run(here / "ours")
    events = write_events(here / "ppo_seed1", {"return": {0: 0.0, 50: 0.5, 100: 1.0}})
    gathered = gather([ours, events])
    assert [run.task for run in gathered.runs] == [TASK, TASK]
    assert any(f"taken for {TASK}" in note for note in gathered.notes)
    other = write_run(here / "other", env="lbf:Foraging-8x8-2p-2f-v2")
    with pytest.raises(
        UserError, match="names no environment; name it by --task, in Python by tasks, one of"
    ):
        gather([ours, other, events])
    assert gather([ours, other, events], Options(tasks={"": TASK})).runs[-1].task == TASK


def test_methods_without_a_common_environment_end_in_one_line(here, capsys):
    write_run(here / "ours")
    write_sacred(here / "sacred", env_args={"key": "rware:tiny"})
    assert main(["compare", "ours", "sacred"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"no environment has a result of every method: ippo on {TASK}, qmix on rware:tiny" in error
    )
    assert main(["compare", "ours", "sacred", "--task", TASK, "--out", "x", "--quiet"]) == 0


def test_an_imported_folder_has_the_numbers_and_their_meaning(here, capsys):
    write_sacred(here / "sacred/1", seed=4, action_selector="soft_policies", name="mappo")
    write_sacred(here / "sacred/2", seed=5, action_selector="soft_policies", name="mappo")
    assert main(["import", "theirs=sacred", "--out", "kept"]) == 0
    assert "theirs" in capsys.readouterr().out
    first, again = gather(["theirs=sacred"]), gather(["kept"])
    assert again.notes == first.notes
    (a,), (b,) = first.runs, again.runs
    assert (b.source, b.method, b.task, b.seeds, b.names_policy) == (
        *("EPyMARL", "theirs", TASK),
        *((4, 5), True),
    )
    for name in ("return_sampled", "episode_length"):
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name])
    with pytest.raises(UserError, match="kept: exists and is not empty"):
        write(first.runs, here / "kept")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("import", "ours"), "ours: is a run of perla; `perla compare` reads it as it is"),
        (("import", "nowhere"), "nowhere: no such file or folder"),
        (("import", "ours", "--column", "x"), "--column x: expected OURS=THEIRS"),
        (("compare", "ours", "--step-factor", "0"), "--step-factor 0: expected a number > 0"),
        (("compare", "ippo", "mappo", "--tag", "x"), "--tag: is for finished runs"),
        (("compare", "ours", "mappo"), "mappo: is no folder or file, and ours is"),
        (("compare", "runs/nowhere", "ours"), "runs/nowhere: no such file or folder"),
        (("compare", "ours", "--until", "x"), "--until x: expected a whole number"),
    ],
)
def test_mistakes_end_in_one_line(here, capsys, argv, message):
    write_run(here / "ours")
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
