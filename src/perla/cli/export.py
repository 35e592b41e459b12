"""`perla export`: a policy as a file for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from perla.cli import suites
from perla.cli.parser import Parser, add_trust, trust
from perla.cli.tables import say
from perla.config import convert
from perla.errors import UserError, nearest
from perla.runs.spec import Seed

FORMATS = ("jax", "numpy", "onnx")


def export_command(argv: Sequence[str]) -> int:
    """Write a policy of a run as a file for other programs."""
    parser = Parser(
        "export",
        "Write the greedy policy of a run as a file that other programs read without perla, and\n"
        "check that it chooses the same actions.",
    )
    parser.add_argument("dir", metavar="DIR", help="the run's folder")
    parser.add_argument(
        "--format", metavar="|".join(FORMATS), default="numpy",
        help="a function for JAX, arrays with a JSON of the architecture, or ONNX [numpy]",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FILE", help="the file [policy.jaxexport, .npz or .onnx in DIR]"
    )
    parser.add_argument("--seed", metavar="S", help="a seed of the run [the best]")
    parser.add_argument(
        "--last", action="store_true", help="the last parameters instead of the best evaluated ones"
    )
    add_trust(parser)
    arguments = parser.parse(argv)
    if arguments.format not in FORMATS:
        raise nearest(arguments.format, FORMATS, what="format")
    seed = convert(arguments.seed or "none", Seed | None, name="--seed")
    folder, format = Path(arguments.dir), arguments.format
    if arguments.out and not Path(arguments.out).parent.is_dir():
        raise UserError(f"--out {arguments.out}: there is no folder {Path(arguments.out).parent}")

    from perla.runs import execute, exports
    from perla.runs.play import default_seed
    from perla.runs.store import Folder

    path = Path(arguments.out) if arguments.out else exports.default_path(folder, format)
    run, env, trainer, exported = execute.load(folder, trust=trust(arguments), say=suites.tell)
    chosen = default_seed(run, Folder.open(folder)) if seed is None else seed
    actor = execute.policy(run, trainer, exported, chosen, best=not arguments.last)
    with closing(trainer):
        compared = exports.write(path, env, actor, format)
    say(f"{path}: the policy of seed {chosen}; {compared:,} actions in new episodes are the same")
    return 0
