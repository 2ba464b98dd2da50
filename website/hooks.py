"""What mkdocs.yml has MkDocs call: pages that are no Markdown in docs/, links, the reference."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import notebooks, page_and_pictures
from reference import ROOT, navigation, pages
from repository_pages import ELSEWHERE, HOME, site_links

# They name everything, and are seldom what is looked for.
SEARCHED_LAST = ("changelog.md", "results.md", "testing.md")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation's place for the reference."""
    assert config.nav is not None
    config.nav = [
        {"Reference": navigation()} if entry == {"Reference": "reference/"} else entry
        for entry in config.nav
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/ as Markdown."""
    for page, file in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text()))
    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    for notebook in notebooks():
        page, pictures = page_and_pictures(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
        for name, drawn in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=drawn))
    for asset in (Path(__file__).parent / name for name in ("style.css", "iframe-worker.js")):
        files.append(File.generated(config, asset.name, content=asset.read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page's links to files into links of the site."""
    here = page.file.src_uri
    if here in SEARCHED_LAST:
        page.meta["search"] = {"boost": 0.1}
    return (
        markdown if here.startswith("reference/") else site_links(markdown, here, _titles(config))
    )


def _titles(config: MkDocsConfig) -> dict[str, str]:
    """Return what the navigation calls the pages that are not of the reference."""
    found = {"index.md": HOME}
    for section in config.nav or []:
        for pages_of_it in section.values():
            if isinstance(pages_of_it, list):
                found |= {page: title for entry in pages_of_it for title, page in entry.items()}
    return found
