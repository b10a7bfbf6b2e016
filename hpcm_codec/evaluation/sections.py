"""Parts of a document that a command writes: the lines between `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hpcm_codec.errors import FileError, UsageError
from hpcm_codec.system.files import file_error


def with_sections(path: Path, sections: Mapping[str, str], *, check: bool) -> str:
    """A document with texts between the markers of their names.

    check: raise FileError when that is not what the document is already. Also raises FileError when it cannot be read, UsageError when it
    lacks markers.
    """
    try:
        document = path.read_text(encoding="utf-8")
    except OSError as error:
        raise file_error(path, error) from error
    updated = document
    for name, text in sections.items():
        updated = with_section(updated, name, text)
    if check and updated != document:
        raise FileError("is not what the results say", file=path, advice="run this without --check")
    return updated


def with_section(document: str, name: str, text: str) -> str:
    """The document with that text between the markers of that name; raises UsageError when it has not one pair of them.

    >>> with_section("a\\n<!-- x -->\\nold\\n<!-- /x -->\\nb\\n", "x", "new\\n")
    'a\\n<!-- x -->\\nnew\\n<!-- /x -->\\nb\\n'
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise UsageError(f"the document needs one line {begin.strip()} and below it one {end}")
    before, rest = document.split(begin)
    return f"{before}{begin}{text}{end}{rest.split(end)[1]}"
