"""Parts of a document that a command writes: the lines between `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

from hpcm_codec.errors import UsageError


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
