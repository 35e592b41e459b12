"""The documentation's site is built strictly, and its reference is complete."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import pytest

import perla
from perla import errors
from perla.methods.recipes import RECIPES
from test_pages import DOCS, PAGES, ROOT, python_blocks


@pytest.fixture(scope="module")
def hooks():
    """The site's hooks."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "assets" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- The site -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built strictly: broken links and anchors are errors."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, text=True, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """The addresses that a browser requests for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(attributes.get("src") or "")
        if tag == "link" and attributes.get("rel") != "canonical":
            self.addresses.append(attributes.get("href") or "")


@pytest.mark.xdist_group("site")
def test_the_search_finds_a_setting(site):
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    assert any(entry["title"] == "gae_lambda" for entry in found)
    assert (site / "search" / "search_index.js").exists()


@pytest.mark.xdist_group("site")
def test_pages_request_nothing_from_elsewhere(site):
    assert len(list(site.rglob("*.html"))) > len(list(DOCS.glob("*.md")))
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert [each for each in loaded.addresses if "//" in each] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


@pytest.mark.xdist_group("site")
def test_links_out_of_the_docs_lead_to_pages_of_the_site(site):
    assert "source/examples/crossing.py.html" in (site / "host-environments.html").read_text()
    assert (site / "source" / "examples" / "crossing.py.html").exists()
    assert 'href="glossary.html"' in (site / "contributing.html").read_text()
    assert (site / "source" / "benchmarks" / "marginal.png").exists()


@pytest.mark.xdist_group("site")
def test_the_search_works_in_a_page_that_is_a_file(site):
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with playwright.sync_playwright() as engine:
        try:
            browser = engine.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        page, requested, faults = browser.new_page(), [], []
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((site / "index.html").as_uri())
        page.locator(".md-search__input").press_sequentially("gae_lambda")
        result = page.locator(".md-search-result__link[href$='#gae_lambda']")
        result.first.wait_for(state="attached", timeout=60_000)
        assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
        assert faults == []
        browser.close()


# --- Reference ----------------------------------------------------------------------------------


def test_the_reference_has_every_public_name(hooks):
    described = {name.rpartition(".")[2] for name in hooks.public()}
    assert set(perla.__all__) - described == set()
    imported = {
        (node.module, alias.name)
        for path in PAGES
        for code in python_blocks(path)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("perla.")
        for alias in node.names
    }
    modules = {(module, name) for module, name in imported if is_module(f"{module}.{name}")}
    assert {name for _, name in imported - modules} - described == set()


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_a_public_name_without_its_docstring_fails_the_build(hooks, tmp_path):
    (tmp_path / "made_up.py").write_text(
        textwrap.dedent('''
        def f(x: int, y):
            """Nothing about errors."""
            raise UserError("no")

        class A:
            """A class."""
            size: int

            def g(self, x: Array) -> int:
                """No axes."""
        ''')
    )
    assert hooks.undocumented(["made_up.f", "made_up.A", "made_up.b"], tmp_path) == [
        "made_up.f: y has no annotation",
        "made_up.f: its docstring does not say when it raises UserError",
        "made_up.A.size has no docstring",
        "made_up.A.g: its docstring has no axes, as in `[env, agent]`",
        "made_up.b does not exist",
    ]


def test_the_page_of_methods_has_every_method():
    table = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "methods.md").read_text(), re.M)
    assert table == list(RECIPES)


# --- Pages that messages name -------------------------------------------------------------------


def named_pages() -> set[str]:
    """The pages that the sources name by `perla.errors.page`."""
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    return set(re.findall(r"page\('([\w-]+\.md)'\)", sources))


def test_pages_that_messages_name_are_there():
    assert {"smac.md", "your-own-environment.md", "learning.md"} <= named_pages()
    assert [name for name in named_pages() if errors.page(name) != str(DOCS / name)] == []
    assert errors.page("none.md") == "docs/none.md in perla's repository"


@pytest.mark.slow
def test_a_wheel_has_the_pages_that_messages_name(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "tests"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    target = str(tmp_path / "to")
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", target, str(source)], check=True, cwd=tmp_path
    )
    asked = f"from perla.errors import page; print(*map(page, {sorted(named_pages())}))"
    shown = subprocess.run(
        [sys.executable, "-c", asked], env=os.environ | {"PYTHONPATH": target}, text=True,
        capture_output=True, check=True, cwd=tmp_path,
    ).stdout.split()  # fmt: skip
    assert len(shown) == len(named_pages())
    assert all(path.startswith(target) and Path(path).is_file() for path in shown)
