"""Hooks of the documentation's site: generated pages, links out of `docs/`, and the rule of the
reference."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from perla.cli.flags import flag_name, show
from perla.config import Config, describe, fields, tag, variants
from perla.methods.peers import PEERS
from perla.methods.recipes import RECIPES, make
from perla.methods.settings import Setting, available

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
ORIGINS = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "tutorials/own_environment.md": "docs/tutorials/own_environment.ipynb",
    "tutorials/flax_critic.md": "docs/tutorials/flax_critic.ipynb",
    "tutorials/other_programs.md": "docs/tutorials/other_programs.ipynb",
}
"""Pages made of files that are no pages of `docs/`: address on the site → path."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files outside `docs/` that pages link to.

    Raises `PluginError` where the reference lacks something.
    """
    problems = undocumented(public())
    if problems:
        raise PluginError("the reference: " + "; ".join(problems))
    pages = {name: _read(ROOT / origin) for name, origin in ORIGINS.items()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "settings.md", content=settings_page()))
    pages |= {file.src_uri: file.content_string for file in files.documentation_pages()}
    for path in sorted({path for page, text in pages.items() for path in _outside(page, text)}):
        name, file = _address(path), ROOT / path
        if file.is_file() and name.endswith(".md"):
            code = f"# {path}\n\n```{file.suffix[1:]}\n{file.read_text()}\n```\n"
            files.append(File.generated(config, name, content=code))
        elif file.is_file():
            files.append(File.generated(config, name, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links to files of the repository as links of the site."""
    here, folder = page.file.src_uri, posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        return posixpath.relpath(_address(_path(here, match[1])), folder)

    return LINK.sub(link, markdown)


def _path(page: str, link: str) -> str:
    """The path in the repository of what a page links to."""
    origin = ORIGINS.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _address(path: str) -> str:
    """The address on the site of a file of the repository. Text becomes a page."""
    for page, origin in ORIGINS.items():
        if path == origin:
            return page
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}" + ("" if path.endswith((".png", ".svg")) else ".md")


def _outside(page: str, text: str) -> Iterator[str]:
    """The paths outside `docs/` that a page links to, without those that are pages."""
    for link in LINK.findall(text):
        path = _path(page, link)
        if not path.startswith("docs/") and path not in ORIGINS.values():
            yield path


def _read(path: Path) -> str:
    """A file as Markdown; of a notebook its texts and its code."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in json.loads(path.read_text())["cells"]
    ]
    return "\n\n".join(
        f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells
    )


# --- Settings -----------------------------------------------------------------------------------


INTRODUCTION = """# Every setting

A setting is a flag of `perla train` and `perla compare`, an argument of `perla.train`, and a key of
a run's JSON. It means the same in every method. This page is made of the settings themselves.
`perla train ALGO --help` prints those of one method; [learning.md](learning.md) and the pages of
the methods give the reasons for the defaults.
"""


def settings_page() -> str:
    """A section for every setting of all methods: meaning, values, defaults, other names."""
    found: dict[str, tuple[Setting, dict[str, list[str]]]] = {}
    for algo in RECIPES:
        config = make(algo)
        for setting in available(config).values():
            _, defaults = found.setdefault(setting.name, (setting, {}))
            defaults.setdefault(_default(config, setting), []).append(algo)
    return "\n\n".join([INTRODUCTION, *(_section(*found[name]) for name in sorted(found))])


def _section(setting: Setting, defaults: dict[str, list[str]]) -> str:
    """The section of a setting; `defaults`: value → the methods that have it."""
    flag, choices = flag_name(setting.name), variants(setting.type)
    values = "yes or no" if setting.type is bool else describe(setting.type)
    rows = [f"`{flag}`: " + (", ".join(f"`{each}`" for each in choices) or values)]
    rows += [f"with `{flag_name(name)} {chosen}`" for name, chosen in setting.within[-1:]]
    most, *others = sorted(defaults, key=lambda value: -len(defaults[value]))
    rows += [f"default: `{most}`"]
    rows += [f"default of {', '.join(defaults[each])}: `{each}`" for each in others]
    owners = [algo for algo in RECIPES if any(algo in algos for algos in defaults.values())]
    rows += [f"methods: {'all' if len(owners) == len(RECIPES) else ', '.join(owners)}"]
    names = [f"`{theirs}`" for theirs, ours in PEERS.items() if ours.split()[0] == setting.name]
    rows += [f"elsewhere called: {', '.join(names)}"] if names else []
    return "\n".join([f"## {setting.name}\n\n{setting.help}\n", *(f"- {row}" for row in rows)])


def _default(config: Config, setting: Setting) -> str:
    """A setting's default in a method, as text."""
    at: Any = config
    for name, chosen in setting.within:
        present = getattr(at, name)
        choices = variants(next(field.type for field in fields(type(at)) if field.name == name))
        at = present if tag(present) == chosen else choices[chosen]()
    value = getattr(at, setting.name)
    if value is None or isinstance(value, Config):
        return tag(value)
    return ("yes" if value else "no") if isinstance(value, bool) else show(value)


# --- Reference ----------------------------------------------------------------------------------


def public() -> list[str]:
    """The names that the pages of `docs/reference` describe, as `module.name`."""
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]


def undocumented(names: list[str], sources: Path = ROOT / "src") -> list[str]:
    """A line about each lack of the public names: see `_lacks`."""
    found = []
    for name in names:
        module, _, last = name.rpartition(".")
        base = sources.joinpath(*module.split("."))
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        code, lines = path.read_text(), griffe.LinesCollection()
        lines[path] = code.splitlines()
        members = griffe.visit(module, path, code, lines_collection=lines).members
        found += _lacks(members[last]) if last in members else [f"{name} does not exist"]
    return found


def _lacks(thing: griffe.Object | griffe.Alias) -> Iterator[str]:
    """Its docstring, the annotations of its parameters, the axes of arrays that its annotations
    leave open, and its `UserError`; of a class, those of its public methods and fields too."""
    text = thing.docstring.value if thing.docstring else ""
    if not text:
        yield f"{thing.path} has no docstring"
    if thing.is_class:
        for name, member in thing.members.items():
            derived = member.is_attribute and (
                member.annotation is None or "ClassVar" in str(member.annotation)
            )
            hidden = name.startswith("_") or member.is_alias or derived
            if not hidden and not (member.is_attribute and "__init__" in thing.members):
                yield from _lacks(member)
    if not thing.is_function:
        return
    parameters = [each for each in thing.parameters if each.name not in ("self", "cls")]
    for each in parameters:
        if each.annotation is None:
            yield f"{thing.path}: {each.name} has no annotation"
    types = [str(each.annotation) for each in parameters] + [str(thing.returns)]
    if "[" not in text and any(re.search(r"(?<!\[)\b(Array|ndarray)\b", each) for each in types):
        yield f"{thing.path}: its docstring has no axes, as in `[env, agent]`"
    if re.search(r"raise (UserError|nearest)\b", thing.source) and "UserError" not in text:
        yield f"{thing.path}: its docstring does not say when it raises UserError"
