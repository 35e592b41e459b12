"""Keep what `perla reproduce` found: small files under docs/results/, and the page that shows them.

    for e in lbf failures full-observability scaling variance samples grid theory matrix \
        aggregators; do
        perla reproduce $e --scale quick --out runs/reproduce-quick
    done
    perla reproduce matrix --scale paper --out runs/reproduce-paper
    python benchmarks/reproduction.py runs/reproduce-quick runs/reproduce-paper

Nothing on docs/reproduction.md below its title is written by hand. What is kept already may be
given as a folder, too, `docs/results/quick`: of what several hold at one scale the last one counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from perla.experiments.catalogue import EXPERIMENTS

KEPT = ("verdict.json", "summary.json", "*.png", "*.svg")

HEAD = """\
# The paper's experiments

Made by `benchmarks/reproduction.py` from the folders that these commands leave behind. The rules
and what is measured are in [comparisons.md](comparisons.md); `quick` has fewer maps and steps than
the paper and perla's own settings, the same for all methods: a verdict here is about these.
Returns are those of sampled actions, as in the paper; brackets are 95% intervals.

| experiment | the paper | scale | verdict |
|---|---|---|---|
"""


def section(facts: dict[str, Any], folder: Path) -> str:
    """An experiment's part of the page."""
    pictures = "\n".join(
        f"![{path.stem}]({path.relative_to('docs').as_posix()})"
        for path in sorted(folder.glob("*.png"))
    )
    return f"""
## {title(facts)}

    {facts["command"]}

{facts["figure"]}. {facts["claim"]}

*The claim holds if:* {facts["rule"]}

**{facts["verdict"].capitalize()}**: {facts["reason"]}.

{table(facts["rows"])}

{table(facts.get("claims", []))}

{pictures}
"""


def title(facts: dict[str, Any]) -> str:
    """A section's heading, which is also what links to it are made of."""
    name, scale = facts["experiment"], facts["scale"]
    return name if scale == "quick" else f"{name} at {scale}"


def table(rows: list[dict[str, Any]]) -> str:
    """`rows` in Markdown; nothing if there are none."""
    if not rows:
        return ""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([cell(row[name]) for name in header] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    """`value` where a bar would end the cell."""
    return str(value).replace("|", "\\|")


def main() -> None:
    """Copy and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="the --out of the experiments")
    sources: list[Path] = parser.parse_args().folders
    found: dict[Path, tuple[Path, dict[str, Any]]] = {}
    for path in (each / name / "verdict.json" for name in EXPERIMENTS for each in sources):
        if path.exists():
            facts = json.loads(path.read_text())
            folder = Path("docs/results", facts["scale"], facts["experiment"])
            found[folder] = path.parent, facts
    page, sections = HEAD, ""
    for folder, (source, facts) in found.items():
        if source.resolve() != folder.resolve():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for pattern in KEPT:
                for file in source.glob(pattern):
                    shutil.copy(file, folder)
        link = f"[{facts['experiment']}](#{title(facts).replace(' ', '-')})"
        page += f"| {link} | {facts['figure']} | {facts['scale']} | {facts['verdict']} |\n"
        sections += section(facts, folder)
    Path("docs/reproduction.md").write_text(page + sections)


if __name__ == "__main__":
    main()
