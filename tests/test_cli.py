"""The command line: what it understands, and how it says that it does not."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest

import fake_loop
from perla.cli import COMMANDS, main
from perla.cli.bench import BENCHES
from perla.cli.flags import explain
from perla.cli.listing import LISTS
from perla.cli.parser import Parser, seeds
from perla.config import Count, Positive, convert
from perla.errors import UserError
from perla.methods.estimators import Auto, Sampled
from perla.methods.ppo import CONTINUOUS, GAE, PPO, Hard, NStep, RMSProp
from perla.methods.presets import PRESETS, Preset
from perla.methods.recipes import RECIPES, make
from perla.methods.settings import configure, every_setting, fixed_fields, settings
from perla.runs import checkpoint

ENV = "lbf:Foraging-5x5-2p-1f-v2"
TINY = (
    "--env",
    ENV,
    "--steps",
    "100",
    "--num-envs",
    "2",
    "--rollout-length",
    "5",
    "--num-evaluations",
    "5",
)


@pytest.fixture
def fake(monkeypatch):
    """Training without learning."""
    fake_loop.install(monkeypatch)


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command that must fail in one line, leave nothing behind, and return the line."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        before = snapshot(tmp_path)
        assert main(argv) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("perla: ")
        assert error.count("\n") == 1
        assert snapshot(tmp_path) == before
        return error

    return run


def contents(path):
    with path.open("rb") as file:
        return file.read()


def snapshot(folder):
    return {path: contents(path) if path.is_file() else None for path in folder.rglob("*")}


# --- What it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "'train'"),
        (["--verison"], "unknown flag"),
        (["list", "env"], "'envs'"),
        (["bench", "trian"], "'train'"),
        (["train", "perla-ipo"], "'perla-ippo'"),
        (["train", "ippo", "--preset", "defualt"], "'default'"),
        (["train", "ippo", "--learning-rat", "1e-3"], "unknown flag '--learning-rat'"),
        (["train", "--hiden", "64"], "'--hidden-size'"),
        (["train", "ippo", "mappo"], "'mappo'"),
        (["train", "ippo", "--env", "lbf:Foraging-8x8-2p-2f-cop-v2"], "Foraging-8x8-2p-2f-cop-v2"),
        (["train", "ippo", "--env", "lfb:Foraging-8x8-2p-2f-coop-v2"], "'lbf'"),
        (["train", "ippo", "--env", "Foraging-8x8-2p-2f-coop-v2"], "lbf:"),
        (["train", "ippo", "--env", ENV, "--env-option", "penality=1"], "penalty"),
        (["train", "ippo", "--env-option", "penalty"], "NAME=VALUE"),
        (["train", "ippo", "--steps"], "--steps"),
        (["train", "ippo", "--steps", "0"], "--steps 0: expected a whole number >= 1"),
        (["train", "ippo", "--steps", "-5"], "--steps -5"),
        (["train", "ippo", "--steps", "many"], "--steps many"),
        (["train", "ippo", "--steps", "1.5"], "--steps 1.5"),
        (["train", "ippo", "--steps", "1" + "0" * 30], "<= 2000000000"),
        (["train", "ippo", "--steps", "1e30"], "<= 2000000000"),
        (["train", "ippo", "--seeds", "0"], "--seeds 0"),
        (["train", "ippo", "--seeds", "100000"], "--seeds 100000"),
        (["train", "ippo", "--seeds", "3,3"], "a list of different seeds"),
        (["train", "ippo", "--seeds", "3,-7"], "-7"),
        (["train", "ippo", "--num-evaluations", "0"], "--num-evaluations 0"),
        (["train", "ippo", "--checkpoint-seconds", "-1"], "--checkpoint-seconds -1"),
        (["train", "ippo", "--lr", "-1e-3"], "--lr -1e-3: expected a number > 0"),
        (["train", "ippo", "--lr", "nan"], "--lr nan"),
        (["train", "ippo", "--lr", "-inf"], "--lr -inf"),
        (["train", "ippo", "--gamma", "1.5"], "--gamma 1.5: expected a number >= 0 and <= 1"),
        (["train", "ippo", "--hidden-size", "0"], "--hidden-size 0"),
        (["train", "ippo", "--hidden-size", "none"], "--hidden-size none: expected a whole number"),
        (
            ["train", "ippo", "--actor-network", "cnn"],
            "--actor-network cnn: expected one of mlp, gru",
        ),
        (["train", "ippo", "--returns", "nstep"], "'n-step'"),
        (["train", "ippo", "--num-envs", "2000000000"], "GiB"),
        (["train", "ippo", "--num-minibatches", "7"], "num_minibatches = 7"),
        (["resume", "nowhere"], "nowhere: not a run folder"),
        (["evaluate", "nowhere"], "nowhere: not a run folder"),
        (["evaluate", "nowhere", "--episodes", "-1"], "--episodes -1"),
        (["evaluate", "nowhere", "--greedy", "--sample"], "not allowed with"),
        (["evaluate"], "DIR"),
        (["render", "nowhere", "--out", "a.mp4"], ".gif or .png"),
        (["render", "nowhere", "--out", "no/such/a.gif"], "no/such"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(refused, argv, says):
    assert says in refused(*argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--gae-lambda", "0.9", "--returns", "n-step"], "--gae-lambda belongs to --returns gae"),
        (["--n-step", "10"], "this run has --returns gae"),
        (["--target-update-tau", "0.1"], "this run has --target none"),
        (["--huber-delta", "1"], "--huber-delta belongs to --loss huber"),
        (["--k", "50"], "--num-samples belongs to perla-ippo"),
        (["--critic-form", "action-value"], "this run is ippo"),
    ],
)
def test_a_setting_of_what_is_not_chosen_teaches(refused, argv, says):
    assert says in refused("train", "ippo", *argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["qmix", "--clip-eps", "0.1"], "--clip-eps is no setting of qmix"),
        (["vdn", "--gae-lambda", "0.9"], "--gae-lambda is no setting of vdn"),
        (["vdn", "--k", "5"], "--num-samples belongs to perla-ippo"),
        (["ippo", "--double-q"], "--double-q is no setting of ippo"),
        (
            ["ippo", "--mixing-embed-dim", "8"],
            "--mixing-embed-dim belongs to qmix, ow-qmix, cw-qmix",
        ),
        (["qmix", "--alpha", "0.5"], "--alpha belongs to ow-qmix, cw-qmix"),
        (["qmix", "--mixer", "sum"], "--mixer is decided by the method: iql, vdn, qmix, ow-qmix"),
        (["vdn", "--weighting=weighted"], "--weighting is decided by the method: ow-qmix, cw-qmix"),
        (["vdn", "--lamda", "2"], "unknown flag '--lamda'; --q-lambda is no setting of vdn"),
        (["ippo", "--lamda", "2"], "unknown flag '--lamda'; did you mean '--gae-lambda'?"),
        (["coma", "--init-sdt", "2"], "'--init-sdt'; --init-std is no setting of coma"),
        (
            ["ippo", "--kernel", "2"],
            "'--kernel'; --num-kernels belongs to qplex, maic-qplex, and this",
        ),
        (["cw-qmix", "--no-double-q"], "double_q"),
        (["vdn", "--num-envs", "64", "--buffer-size", "8"], "buffer_size = 8"),
        (["vdn", "--buffer-size", "2000000000"], "GiB"),
        (["maddpg", "--buffer-size", "2000000000"], "GiB"),
        (["maddpg", "--double-q"], "--double-q is no setting of maddpg"),
        (["ippo", "--temperature", "2"], "--temperature belongs to maddpg, and this run is ippo"),
        (["maddpg", "--preset", "pymarl"], "is not for maddpg; known: default, epymarl,"),
        (["vdn", "--preset", "mava"], "is not for vdn; known: default, epymarl, pymarl"),
        (["mappo", "--preset", "pymarl"], "is not for mappo; known: default, epymarl,"),
    ],
    ids=" ".join,
)
def test_a_setting_of_other_methods_teaches(refused, argv, says):
    assert says in refused("train", *argv)


def test_what_a_method_decides_is_told_from_python_too():
    with pytest.raises(UserError, match="mixer is decided by the method: iql, vdn"):
        configure("vdn", "default", {"mixer": "sum"})
    with pytest.raises(UserError, match="unknown setting 'lamda'; q_lambda is no setting of vdn"):
        configure("vdn", "default", {"lamda": 2})


def test_a_setting_chooses_nothing_by_itself(refused):
    line = refused("train", "perla-ippo", "--k", "50")
    assert "--num-samples belongs to --estimator sampled; this run has --estimator auto" in line


def test_an_existing_output_folder(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/results.txt").write_text("dear to me")
    assert "not empty" in refused("train", *TINY, "--out", "mine")


def test_an_output_folder_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "not a directory" in refused("train", *TINY, "--out", "file/run")


@pytest.fixture
def finished(fake, tmp_path):
    assert main(["train", "ippo", *TINY, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    return tmp_path / "run"


def newest(folder):
    return max((folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: b"\x80\x04not ours", "not a checkpoint"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
    ],
    ids=["truncated", "foreign", "damaged"],
)
@pytest.mark.parametrize("command", ["resume", "evaluate", "render"])
def test_bad_checkpoints(refused, finished, command, content, says):
    (finished / "summary.json").unlink()
    for path in (finished / "checkpoints").iterdir():
        path.write_bytes(content(path.read_bytes()))
    line = refused(command, str(finished))
    assert says in line
    assert newest(finished).name in line


def test_an_unreadable_checkpoint(refused, finished, monkeypatch):
    def read(path):  # Root could read it, whatever its mode.
        raise PermissionError(errno.EACCES, "Permission denied")

    (finished / "summary.json").unlink()
    monkeypatch.setattr(checkpoint, "read_regular", read)
    assert "permission denied" in refused("evaluate", str(finished))


def test_a_checkpoint_in_whose_place_is_a_folder(refused, finished):
    for path in (finished / "checkpoints").iterdir():
        path.unlink()
        path.mkdir()
    assert "is a directory" in refused("evaluate", str(finished))


def test_a_configuration_that_somebody_edited(refused, finished):
    text = (finished / "config.json").read_text()
    (finished / "config.json").write_text(text.replace('"lr": 0.001', '"lr": "fast"'))
    assert "$.config.lr" in refused("evaluate", str(finished))
    (finished / "config.json").write_text(text.replace('"lr": 0.001', '"lr": 0.1'))
    assert "another configuration" in refused("evaluate", str(finished))
    (finished / "config.json").write_text("{")
    assert "not the configuration" in refused("evaluate", str(finished))


def test_an_unknown_seed_of_a_run(refused, finished):
    assert "seed 7" in refused("render", str(finished), "--seed", "7")


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    """No file may grow beyond 16 KiB, which is what a full disk looks like to a plain user."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))\n"
        "from perla.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/results.txt").write_text("dear to me")
    arguments = ["train", "ippo", *TINY, "--hidden-size", "64", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--quiet"],
        env=os.environ | {"PERLA_CACHE": "off"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("perla: ")
    assert done.stderr.count("\n") == 1
    assert "file too large" in done.stderr
    assert (tmp_path / "earlier/results.txt").read_text() == "dear to me"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


# --- What it understands ------------------------------------------------------------------------


def test_every_setting_has_one_meaning():
    for algo in RECIPES:
        own = list(settings(type(make(algo))))
        assert len({setting.name for setting in own}) == len(own)
        for setting in own:
            known = every_setting()[setting.name]
            assert known.within == setting.within, "learners have it in different places"
            assert (known.type is bool) == (setting.type is bool)
    reserved = {"env", "steps", "seeds", "out", "preset", "quiet"}
    assert not reserved & set(every_setting())


def test_flags_are_the_configuration():
    config = configure(
        "perla-ippo",
        "default",
        {
            "lr": "1e-3",
            "hidden_size": "64",
            "clip_eps": "none",
            "returns": "n-step",
            "n_step": "10",
            "target": "hard",
            "target_update_interval": "1e3",
            "optimizer": "rmsprop",
            "rms_eps": "1e-6",
            "normalize_rewards": True,
            "estimator": "sampled",
            "num_samples": "50",
        },
    )
    value = make("perla-ippo").value.replace(estimator=Sampled(num_samples=50))
    assert config == make(
        "perla-ippo",
        lr=1e-3,
        hidden_size=64,
        clip_eps=None,
        returns=NStep(n_step=10),
        target=Hard(target_update_interval=1000),
        optimizer=RMSProp(rms_eps=1e-6),
        normalize_rewards=True,
        value=value,
    )


def test_choosing_what_is_chosen_keeps_the_presets_settings(monkeypatch):
    monkeypatch.setitem(PRESETS, "mine", Preset("mine", {PPO: {"returns": GAE(gae_lambda=0.5)}}))
    assert configure("ippo", "mine", {"returns": "gae"}).returns == GAE(gae_lambda=0.5)
    assert configure("ippo", "mine", {"gae_lambda": "0.7"}).returns == GAE(gae_lambda=0.7)
    assert isinstance(configure("perla-ippo", "mine", {}).value.estimator, Auto)


def test_flags_reach_the_run(fake, tmp_path):
    out = tmp_path / "run"
    arguments = ["--seeds", "3,7", "--lr", "1e-2", "--no-agent-ids", "--env-option", "penalty=0.5"]
    assert main(["train", "ippo", *TINY, *arguments, "--quiet", "--out", str(out)]) == 0
    run = json.loads((out / "config.json").read_text())["run"]
    assert run["seeds"] == [3, 7]
    assert run["steps"] == 100
    assert run["env_options"] == {"penalty": 0.5}
    assert run["config"]["lr"] == 0.01
    assert run["config"]["agent_ids"] is False


def test_numbers_may_be_written_as_people_write_them():
    for text in ("1000000", "1_000_000", "1e6"):
        assert convert(text, Count, name="--steps") == 1_000_000
    assert convert("3", Positive, name="--lr") == 3.0
    assert convert("none", Count | None, name="--bptt-length") is None


def test_seeds():
    assert seeds("5") == (0, 1, 2, 3, 4)
    assert seeds("3,7") == (3, 7)
    assert seeds("3,") == (3,)


def test_negative_numbers_are_values():
    parser = Parser("test", "")
    parser.add_argument("--x")
    assert parser.parse(["--x", "-1e-3"]).x == "-1e-3"
    with pytest.raises(UserError, match="unknown flag"):
        parser.parse(["-q"])


@pytest.mark.parametrize("algo", RECIPES)
def test_help_shows_a_methods_own_settings(algo, capsys):
    assert main(["train", algo, "--help"]) == 0
    text = capsys.readouterr().out
    for field in set(make(algo).__struct_fields__) - fixed_fields():
        row = re.search(rf"^ +--(\[no-\])?{field.replace('_', '-')}\b", text, re.MULTILINE)
        assert bool(row) == (algo != "coma" or field not in CONTINUOUS), field
    assert ("--estimator" in text) == ("perla" in algo)


def test_help_shows_the_presets_defaults(monkeypatch):
    monkeypatch.setitem(
        PRESETS, "mine", Preset("mine", {PPO: {"lr": 0.125, "returns": NStep(n_step=7)}})
    )
    text = explain("ippo", "mine")
    assert "[0.125]" in text
    assert "[n-step]" in text
    assert "[7]" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: perla")


def test_lists(capsys):
    for what, known in (("envs", "lbf:Foraging"), ("algos", "perla-ippo"), ("presets", "default")):
        assert main(["list", what]) == 0
        heading, _, *rows, _, others = capsys.readouterr().out.splitlines()
        assert "for `" in heading
        assert any(known in row for row in rows)
        assert re.findall("list ([a-z]+)", others) == [other for other in LISTS if other != what]
        assert what in COMMANDS["list"]


def test_methods_are_listed_in_a_line_each(capsys):
    assert main(["list"]) == 0
    _, _, *rows, _, _ = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == list(RECIPES)
    assert all(25 < len(row) <= 100 for row in rows)


def test_help_says_what_a_name_stands_for_and_leaves_out_what_goes_without_saying():
    assert "= mixer qmix, weighting weighted (full central)\n" in explain("cw-qmix", "default")
    text = explain("perla-maa2c", "default")
    recipe = (
        "value embedded (critic_input global), clip_eps none, update_epochs 1, num_minibatches 1"
    )
    assert f"= {recipe}\n" in text


def test_help_keeps_to_a_page_and_names_whole(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert all(re.search(rf"[ ,;]{name}[ ,;]", text) for name in (*RECIPES, *PRESETS))


def test_every_benchmark_is_named():
    assert [bench for bench in BENCHES if bench not in COMMANDS["bench"]] == []


def test_resuming_a_finished_run_says_so(finished, capsys):
    assert main(["resume", str(finished)]) == 0
    out, error = capsys.readouterr()
    assert "finished" in out
    assert error == ""


def test_a_run_without_a_folder_gets_one_of_its_own(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "ippo", *TINY]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [f"lbf-Foraging-5x5-2p-1f-v2-ippo-{number}" for number in (1, 2)]
    assert names[1] in capsys.readouterr().out


def test_pictures_are_drawn_where_asked(finished, tmp_path):
    for name, start in (("a.gif", b"GIF8"), ("a.png", b"\x89PNG")):
        assert main(["render", str(finished), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(start)


def python(*code, **environment):
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_misspelt_commands_do_not_wait_for_jax():
    code = "import sys, perla.cli; perla.cli.main(sys.argv[1:]); print('jax' in sys.modules)"
    for argv in (["--help"], ["--version"], ["trian"], ["resume", "--help"], ["list", "--help"]):
        leave = f"import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); {code}"
        assert python("-c", leave, *argv).splitlines()[-1] == "False", argv


def test_the_doctor_finds_this_machine_ready(capsys):
    assert main(["doctor"]) == 0
    assert "self-test" in capsys.readouterr().out


def test_a_second_process_compiles_nothing(tmp_path):
    code = """
import jax
from collections import Counter
from perla.runs import backend
backend.prepare()
events = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
jax.jit(lambda x: jax.lax.scan(lambda c, _: (jax.numpy.sin(c @ c), None), x, None, 5))(
    jax.numpy.ones((8, 8)))
print(events["cache_misses"], events["cache_hits"])
"""
    first = python("-c", code, PERLA_CACHE=str(tmp_path)).split()
    second = python("-c", code, PERLA_CACHE=str(tmp_path)).split()
    assert int(first[0]) > 0
    assert second == ["0", first[0]]


def test_from_python(fake, tmp_path):
    import perla
    import perla.loops.anakin

    result = perla.train(
        ENV, "ippo", steps=100, seeds=[4, 2], num_envs=2, rollout_length=5, out=tmp_path / "run"
    )
    assert result.spec.seeds == (4, 2)
    assert (tmp_path / "run/summary.json").exists()
    assert perla.make(ENV).spec.agents == 2
    with pytest.raises(UserError, match="did you mean 'lr'"):
        perla.train(ENV, "ippo", steps=100, lrr=1)


# --- Completion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_flags_and_names(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "perla-ippo", "epymarl", ENV.split(":")[1], "slurm"):
        assert word in script, word
    for flag in ("num-samples", "env-option", "shard", "step-factor"):
        assert flag in script, flag


def test_the_completion_of_bash_is_a_script(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "perla"
    path.write_text(capsys.readouterr().out)
    command = (
        f"source {path}; COMP_WORDS=(perla com); COMP_CWORD=1; _shtab_perla; echo ${{COMPREPLY[@]}}"
    )
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert found.stdout.split() == ["compare", "completion"], found.stderr


def test_an_unknown_shell_is_named(refused):
    assert "unknown shell 'bsh'; did you mean 'bash'?" in refused("completion", "bsh")
