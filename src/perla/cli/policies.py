"""`perla render`: the policies of a run, drawn; and the flags of commands that play them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from perla.cli import suites
from perla.cli.parser import Parser, add_trust, trust
from perla.cli.tables import say
from perla.config import convert
from perla.errors import UserError
from perla.runs.spec import Seed


def evaluation_parser(
    command: str, description: str, default: str = "", *, optional: bool = False
) -> Parser:
    """The parser of a command that plays a run's policies; its folder may be `optional`.

    `default` is added to the help of `--greedy`.
    """
    parser = Parser(command, description)
    parser.add_argument(
        "dir", metavar="DIR", nargs="?" if optional else None, help="the run's folder"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--greedy", action="store_true", help=f"the most likely action of every agent{default}"
    )
    how.add_argument("--sample", action="store_true", help="actions sampled from the policies")
    parser.add_argument("--seed", metavar="S", help="a seed of the run")
    parser.add_argument(
        "--last", action="store_true", help="the last parameters instead of the best evaluated ones"
    )
    add_trust(parser)
    return parser


def render_command(argv: Sequence[str]) -> int:
    """Draw an episode of a run's policy."""
    parser = evaluation_parser(
        "render",
        "Draw episodes of a run's policy as a GIF, or one as a PNG; or its learning curves as a "
        "PNG.\nThe policy is the one that was evaluated better, or that of --greedy or --sample.",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="a .gif or .png file [replay.gif, or curves.png, in the run's folder]",
    )
    parser.add_argument(
        "--curves", action="store_true", help="draw the learning curves instead of an episode"
    )
    parser.add_argument(
        "--episode", metavar="N", help="this episode alone: 0, 1, ... [a GIF: the first three]"
    )
    arguments = parser.parse(argv)
    curves, folder = arguments.curves, Path(arguments.dir)
    out = Path(arguments.out or folder / ("curves.png" if curves else "replay.gif"))
    suffixes = (".png",) if curves else (".gif", ".png")
    if out.suffix.lower() not in suffixes:
        raise UserError(f"--out {out}: expected a name that ends in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if curves:
        return _render_curves(folder, out, arguments.given)
    number = convert(arguments.episode or "none", Seed | None, name="--episode")

    from perla.files import write_atomic
    from perla.runs import execute, replay
    from perla.runs.play import default_seed, is_greedy_better
    from perla.runs.store import Folder

    run, env, trainer, exported = execute.load(folder, trust=trust(arguments), say=suites.tell)
    opened = Folder.open(folder)
    seed = seed_of(arguments.seed)
    seed = default_seed(run, opened) if seed is None else seed
    actor = execute.policy(run, trainer, exported, seed, best=not arguments.last)
    greedy = not arguments.sample
    if not (arguments.greedy or arguments.sample) and opened.finished:
        greedy = is_greedy_better(opened.summary(), seed)
    is_png = out.suffix.lower() == ".png"
    count = 1 if is_png or number is not None else replay.EPISODES
    with closing(trainer):
        films = replay.films(
            env, actor, seed=seed, greedy=greedy, episodes=count, first=number or 0
        )
    write_atomic(out, replay.png(films[0]) if is_png else replay.gif(films))
    policy = "greedy" if greedy else "sampled"
    say(f"{out}: {sum(map(len, films))} states of the {policy} policy of seed {seed}")
    return 0


def _render_curves(folder: Path, out: Path, given: Sequence[str]) -> int:
    for flag in given:
        if flag not in ("--curves", "--out"):
            raise UserError(f"{flag}: is for an episode, and --curves draws none; leave it out")

    from perla.runs import pictures

    pictures.draw_curves(folder, out)
    say(f"{out}: learning curves")
    return 0


def seed_of(text: str | None) -> int | None:
    """The seed of `--seed`; none if it is not given."""
    return None if text is None else convert(text, Seed, name="--seed")
