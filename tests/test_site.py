"""The site of docs/ has every page and every public name, and builds without a warning."""

import html.parser
import importlib.util
import os
import re
import subprocess
import sys

import pytest

import keras_vjepa
from keras_vjepa import data, pictures
from tests.support import ROOT
from tests.test_readme import wrong_options
from website import reference, repository_pages

pytestmark = pytest.mark.data

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None
    or importlib.util.find_spec("material") is None,
    reason="the site is built by mkdocs-material and mkdocstrings: pip install -e '.[docs]'",
)


# --- Without mkdocs ------------------------------------------------------------------------------


def pages_of_the_navigation(text):
    """The pages that mkdocs.yml lists; read without a YAML library."""
    return re.findall(r": ([\w/-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)


def test_every_page_is_in_the_navigation():
    listed = pages_of_the_navigation((ROOT / "mkdocs.yml").read_text())
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    lying = [path.relative_to(ROOT / "docs").with_suffix(".md").as_posix() for path in files]
    assert sorted(listed) == sorted([*lying, *repository_pages.ELSEWHERE])
    assert [page for page in listed if not (ROOT / repository_pages.file_of(page)).exists()] == []


def test_every_public_name_has_a_place_in_the_reference():
    """By what Python says is public; the reference itself is read from the source."""
    texts = reference.pages()
    for package in (keras_vjepa, data, pictures):
        described = set(package.__all__) - reference.NOT_DESCRIBED
        if package is keras_vjepa:
            described -= {"data", "evaluation", "training"}  # these are packages with a page each
        for name in described:
            page, dotted = reference.places()[name]
            assert f"::: {dotted}\n" in texts[page], name
    named = [entry for text in texts.values() for entry in re.findall("^::: (.*)$", text, re.M)]
    assert len(named) == len(set(named)) > 100
    assert {page for entry in reference.navigation() for page in entry.values()} == set(texts)


def test_every_folder_that_says_what_is_public_has_a_page():
    folders = [room.name.rpartition(".")[2] for room in reference.rooms()[1:]]
    expected = {
        path.parent.name
        for path in (ROOT / "keras_vjepa").glob("*/__init__.py")
        if "__all__" in path.read_text()
    }
    assert set(folders) == expected
    assert all(f"reference/{folder}.md" in reference.pages() for folder in folders)


def test_links_lead_to_pages_of_the_site_or_nowhere():
    def links(text, page):
        return repository_pages.site_links(text, page, {"speed.md": "Speed"})

    assert links("[a](docs/speed.md#b) [c](LICENSE)", "index.md") == "[a](speed.md#b) c"
    assert links("[![a](docs/speed.md)](docs/speed.md)", "index.md") == "[![a](speed.md)](speed.md)"
    assert links("[docs/speed.md](docs/speed.md)", "index.md") == "[Speed](speed.md)"
    assert links("[a](../recipes/README.md)", "speed.md") == "[a](results.md)"
    assert links("[zoo.py](../keras_vjepa/zoo.py)", "paper.md") == "`zoo.py`"
    same = "[a](https://a.b) [c](#d)\n```\n[e](gone.md)\n```\n"
    assert links(same, "speed.md") == same
    with pytest.raises(FileNotFoundError, match=r"docs/speed.md links to gone.md"):
        links("[a](gone.md)", "speed.md")


def test_sections_of_docstrings_are_those_that_griffe_knows():
    pytest.importorskip("griffe", reason="griffe comes with mkdocstrings")
    from website import docstrings

    text = "Add.\n\nCall arguments:\n    a: one.\n\nExample:\n\n>>> 1\n1\n\n>>> 2\n2\n\nMore."
    assert docstrings.known_sections(text) == (
        "Add.\n\nOther Args: Call arguments\n    a: one.\n\n"
        "Examples:\n    >>> 1\n    1\n\n    >>> 2\n    2\n\nMore."
    )
    returns = "Returns:\n    A dictionary: of names."
    assert docstrings.known_sections(returns) == "Returns:\n    : A dictionary: of names."
    of_a_class = docstrings.known_sections(returns + "\n\nMore.", of_a_class=True)
    assert of_a_class == "**Returns:**\n\nA dictionary: of names.\n\nMore."
    several = "Args:\n    a, b: as in\n        that.\n    c: other."
    assert docstrings.known_sections(several) == (
        "Args:\n    a: as in\n        that.\n    b: as in\n        that.\n    c: other."
    )


def test_the_map_of_the_paper_names_commands_that_there_are(capsys):
    """Its files are links, which tests/test_readme.py follows."""
    text = (ROOT / "docs" / "paper.md").read_text()
    commands = re.findall(r"`(keras-vjepa [^`]*)`", text)
    assert len(commands) > 25
    assert wrong_options("\n".join(dict.fromkeys(commands)), capsys) == []
    tables = {
        number for row in re.findall(r"^\| ([\d, ]+) \|", text, re.M) for number in row.split(", ")
    }
    assert tables == {str(number) for number in range(1, 17)}


def test_the_citation_names_this_version():
    assert f"\nversion: {keras_vjepa.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_changelog_has_its_form():
    """Versions with their dates, the newest first, and what changed by its kind."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    assert [
        v for v in versions[1:] if not re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", v)
    ] == []
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for version in text.split("\n## ")[1:]:
        found = re.findall(r"^### (.*)$", version, re.M)
        assert found == [kind for kind in kinds if kind in found]
    entries = text[text.index("\n### ") :]
    assert [
        line for line in entries.splitlines() if line and not line.startswith(("- ", "  ", "#"))
    ] == []


# --- With it -------------------------------------------------------------------------------------

# Builds the site, and prints which engines were imported while doing so.
BUILD = """
import sys
from mkdocs.__main__ import cli
try:
    cli(["build", "--strict", "--site-dir", sys.argv[1]])
finally:
    print("ENGINES", sorted({"keras", "torch", "jax", "tensorflow"} & set(sys.modules)))
"""


class Addresses(html.parser.HTMLParser):
    """Collects what a page links to, what a browser fetches for it, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag in ("link", "script", "img", "iframe", "source", "video"):
            self.fetched += [values[name] for name in ("href", "src") if values.get(name)]


@pytest.mark.slow
@needs_mkdocs
def test_the_site_builds_without_a_warning_and_opens_without_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    assert "ENGINES []" in done.stdout
    pages = {path.resolve(): Addresses(path) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 30
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses start at the root of a server
            continue
        for address in [*page.links, *page.fetched]:
            assert lies_there(path, address, pages, page.fetched), f"{path.name}: {address}"
    for path in tmp_path.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?https?:", path.read_text()), path


def lies_there(path, address, pages, fetched):
    """Whether an address leads to what is there; other sites are linked to, and never fetched."""
    if re.match(r"(https?:)?//|mailto:", address):
        return address not in fetched
    if address.startswith("data:"):
        return True  # A picture within the page, as reports have them.
    name, _, anchor = address.partition("#")
    target = (path.parent / name.partition("?")[0]).resolve() if name else path
    if not target.is_file():
        return False
    return not anchor or target not in pages or anchor in pages[target].anchors


def test_a_dead_link_and_a_fetched_font_are_found(tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<link href="https://fonts.x/a.css"><a href="gone.html">a</a><i id="b"></i>')
    page = Addresses(path)
    pages = {path.resolve(): page}
    assert not lies_there(path, page.fetched[0], pages, page.fetched)
    assert not lies_there(path, page.links[0], pages, page.fetched)
    assert not lies_there(path.resolve(), "#a", pages, [])
    assert lies_there(path.resolve(), "#b", pages, [])
    assert lies_there(path, "data:image/png;base64,AAAA", pages, [])
