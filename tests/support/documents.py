"""The repository's documents as Markdown reads them: links, headings, code, and lists of files."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

from tests.support.paths import ROOT

OUTPUT = {"simulation"}
"""Folders that commands write into; hidden ones are none of ours either."""
MARKDOWN = MarkdownIt("commonmark").enable("table")
HTML_LINK = re.compile(r"""\b(?:src|href)=["']([^"']+)["']""")


@dataclass(frozen=True)
class Document:
    """One document. `code` holds inline code and the lines of code blocks; `links` are targets as written."""

    path: Path
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    inline: list[str] = field(default_factory=list)
    blocks: list[tuple[str, str]] = field(default_factory=list)
    """Language and text of each code block."""

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def code(self) -> list[str]:
        """Inline code, and the lines of code blocks that are no program."""
        return self.inline + [line for language, text in self.blocks if language != "python" for line in text.splitlines()]

    @property
    def listed(self) -> set[str]:
        """The files and folders (these end in a slash) of the list under the heading "Files", by their paths from this document."""
        _, _, after = self.path.read_text().partition("\n## Files\n")
        found, folders = set(), [""]
        for line in after.partition("```\n")[2].partition("```")[0].splitlines():
            if line.strip():
                depth = (len(line) - len(line.lstrip())) // 2
                path = folders[depth] + line.split()[0]
                folders = [*folders[: depth + 1], path]
                found.add(path)
        return found


def walk(folder: Path = ROOT) -> Iterator[Path]:
    """Yield the repository's files."""
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")) and name not in OUTPUT)
        yield from (Path(at) / name for name in sorted(names))


@cache
def documents() -> list[Document]:
    """Return all documents."""
    return [_read(path) for path in walk() if path.suffix == ".md"]


def _read(path: Path) -> Document:
    document = Document(path)
    tokens = MARKDOWN.parse(path.read_text())
    for at, token in enumerate(tokens):
        if token.type == "fence":
            document.blocks.append((token.info, token.content))
        if token.type == "html_block":
            document.links.extend(HTML_LINK.findall(token.content))
        if token.type == "heading_open":
            document.anchors.add(_anchor("".join(part.content for part in tokens[at + 1].children or ()), document.anchors))
        for part in token.children or ():
            if part.type in ("link_open", "image"):
                document.links.append(str(part.attrs.get("href") or part.attrs["src"]))
            if part.type == "html_inline":
                document.links.extend(HTML_LINK.findall(part.content))
            if part.type == "code_inline":
                document.inline.append(part.content)
    return document


def _anchor(heading: str, taken: set[str]) -> str:
    """Return what GitHub names a heading: small letters, no punctuation, hyphens for spaces, a number where it is taken."""
    name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return next(one for one in (name, *(f"{name}-{number}" for number in range(1, 99))) if one not in taken)
