"""Bring pages that lie outside docs/ into the site, and turn links between files into its links.

All pages are read on GitHub too, where a link leads from file to file. In the site a file has
another place, or none: then its name stays, without a link.
"""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Pages of the site whose file is not docs/<page>.
ELSEWHERE = {
    "index.md": "README.md",
    "results.md": "recipes/README.md",
    "clusters.md": "recipes/DISTRIBUTED.md",
    "contributing.md": "CONTRIBUTING.md",
    "testing.md": "tests/README.md",
    "changelog.md": "CHANGELOG.md",
}
# Pages of this folder are notebooks.
NOTEBOOKS = "notebooks/"
# What a link to a page that is called by its file's name is called in the site.
HOME = "the home page"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def file_of(page: str) -> str:
    """Return the repository's file that a page of the site shows."""
    file = ELSEWHERE.get(page, f"docs/{page}")
    return file.removesuffix(".md") + ".ipynb" if page.startswith(NOTEBOOKS) else file


def page_of(file: str) -> str | None:
    """Return the place in the site of a file of the repository, None if it has none."""
    for page, shown in ELSEWHERE.items():
        if file == shown:
            return page
    if not file.startswith("docs/"):
        return None
    page = file.removeprefix("docs/")
    return page.removesuffix(".ipynb") + ".md" if page.startswith(NOTEBOOKS) else page


def site_links(text: str, page: str, titles: Mapping[str, str]) -> str:
    """Rewrite the links of a page, which lead from its file to others, for the site.

    Args:
        text: Markdown of the file that the page shows.
        page: where it stands in the site.
        titles: of the site's pages. Where a link's words are the name of a file, that of a page
            becomes its title, and that of any other file its path.

    Raises:
        FileNotFoundError: for a link to a file that the repository does not hold.
    """

    def rewritten(link: re.Match[str]) -> str:
        image, words, target = link.groups()
        words = _LINK.sub(rewritten, words)  # a picture that is a link
        path, hash_sign, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(file_of(page)), path))
        if not (ROOT / file).exists():
            raise FileNotFoundError(f"{file_of(page)} links to {target}, which is not there")
        place = page_of(file)
        is_name = file.endswith(words)
        if place is None:
            return f"`{file.removeprefix('keras_vjepa/')}`" if is_name else words
        if is_name:
            words = titles.get(place, words)
        relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{image}[{words}]({relative}{hash_sign}{anchor})"

    # What stands between fences is code.
    parts = _FENCE.split(text)
    return "".join(p if number % 2 else _LINK.sub(rewritten, p) for number, p in enumerate(parts))
