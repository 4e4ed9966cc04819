"""Let the site take in files of the repository that lie outside `docs/`.

A page links to `../benchmarks/README.md` or `../examples/python_api.py`, as it must where the
repository is read. Here these files become pages and files of the site, and the links lead to them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)(?=[)#])")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages of `docs/` and the navigation name, and what that names in turn."""
    pages = [*_of_nav(config.nav), *(file.src_uri for file in files.documentation_pages())]
    seen: set[str] = set()
    while pages:
        uri = pages.pop()
        if uri in seen:
            continue
        seen.add(uri)
        path = _path(uri)
        if files.get_file_from_path(uri) is None and path.is_file():
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        if path.suffix == ".md" and path.is_file():
            links = LINK.findall(path.read_text(encoding="utf-8"))
            pages += [_uri(path, link) for link in links]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    here = _path(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        uri = _uri(here, found[0])
        return posixpath.relpath(uri, folder or ".")

    parts = FENCED.split(markdown)
    return "".join(part if k % 2 else LINK.sub(moved, part) for k, part in enumerate(parts))


def _of_nav(entry: object) -> Iterator[str]:
    """Yield the files that the navigation names."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        yield from _of_nav(list(entry.values()))
    elif isinstance(entry, list):
        for one in entry:
            yield from _of_nav(one)


def _path(uri: str) -> Path:
    """Return the file that a page of the site is made of."""
    inside = ROOT / "docs" / uri
    return inside if inside.exists() else ROOT / uri


def _uri(page: Path, link: str) -> str:
    """Return what the site calls the file that a page links to; a folder stands for its README."""
    path = Path(posixpath.normpath(page.parent / link))
    if path.is_dir():
        path /= "README.md"
    inside = path.is_relative_to(ROOT / "docs")
    return path.relative_to(ROOT / "docs" if inside else ROOT).as_posix()
