"""`perla report`: runs and comparisons as one page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perla.cli import importing, suites
from perla.cli.parser import Parser, add_trust, trust
from perla.cli.tables import say
from perla.config import convert
from perla.errors import UserError
from perla.runs.spec import Seed

OUT = "report.html"


def report_command(argv: Sequence[str]) -> int:
    """Write a page about runs."""
    parser = Parser(
        "report",
        "Write one page about runs, comparisons and reproductions: verdict, interactive curves,\n"
        "tables, settings, replays of learned policies. The page needs no network.\n\n"
        "A folder is a run, or holds some below it, such as the --out of compare, suite or\n"
        "reproduce. Results of other programs are read as compare reads them.",
    )
    parser.add_argument(
        "dirs", metavar="DIR", nargs="+", help="folders of runs, also as NAME=DIR, or files"
    )
    parser.add_argument("--out", metavar="FILE", default=OUT, help=f"the page [{OUT}]")
    parser.add_argument("--title", metavar="TEXT", help="the page's title [methods and task]")
    suites.add_results(parser)
    parser.add_argument(
        "--replays", metavar="N", default="4",
        help="the most replays: of the best method on each task first; 0: none [4]",
    )  # fmt: skip
    parser.add_argument(
        "--figures", metavar="DIR", help="also write the figures as SVG and PDF into this folder"
    )
    parser.add_argument("--quiet", action="store_true", help="print the verdict and errors only")
    importing.add_reading(parser)
    add_trust(parser)
    arguments = parser.parse(argv)
    out = Path(arguments.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: expected a name that ends in .html")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    replays = convert(arguments.replays, Seed, name="--replays")
    threshold = convert(arguments.threshold or "none", float | None, name="--threshold")

    from perla import __version__
    from perla.files import write_atomic
    from perla.report import build

    content, sections = build.build(
        arguments.dirs,
        options=importing.options(arguments),
        version=__version__,
        title=arguments.title,
        metric=arguments.metric,
        threshold=threshold,
        replays=replays,
        trust=trust(arguments),
        say=(lambda text: None) if arguments.quiet else suites.tell,
    )
    write_atomic(out, content)
    for section in sections[:1]:
        say(section.verdict)
    if arguments.figures:
        for path in build.draw(sections, Path(arguments.figures)):
            if not arguments.quiet:
                say(str(path))
    say(f"{out}: {len(content) / 1e6:.1f} MB")
    return 0
