"""Write docs/api.md, the reference of everything public, from signatures and docstrings.

python tools/api_reference.py            # writes docs/api.md
python tools/api_reference.py --check    # exit status 1 when it is not what the docstrings say
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import hpcm_codec
import hpcm_codec.pillow
from hpcm_codec import errors, networks
from hpcm_codec.images import arrays

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
_NAME = "(?:[a-z_]+|[A-Z])"
PARAMETER = re.compile(rf"({_NAME}(?:, {_NAME})*): +(\S.*)")
WIDEST = 100  # of a signature on one line


def page() -> str:
    """The whole page, Markdown."""
    parts = [
        "# Python interface",
        "Made by `python tools/api_reference.py` from the docstrings, whose examples are tested.",
    ]
    parts.append(prose(without_first_line(hpcm_codec)))
    for name in ("encode", "decode", "load_codec"):
        parts += entry(getattr(hpcm_codec, name), name, "##")
    parts += ["## Arrays and tensors", prose(without_first_line(arrays))]
    parts += ["## With Pillow: `import hpcm_codec.pillow`", prose(inspect.getdoc(hpcm_codec.pillow) or "")]
    for class_ in (hpcm_codec.Codec, hpcm_codec.Picture):
        parts += entry(class_, class_.__name__, "##")
        parts += [text for name, member in public_members(class_) for text in entry(member, name, "###")]
    parts += ["## Networks to train: `hpcm_codec.networks`", prose(without_first_line(networks))]
    for name in networks.__all__:
        parts += entry(getattr(networks, name), name, "###")
    parts += ["## Errors", prose(without_first_line(errors))]
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.HpcmError)]
    for kind in sorted(kinds, key=lambda kind: (len(kind.__mro__), kind.exit_status, kind.__name__)):
        base = "" if kind is errors.HpcmError else f", a `{kind.__bases__[0].__name__}`"
        parts += [f"### `{kind.__name__}`{base}; exit status {kind.exit_status}", prose(inspect.getdoc(kind) or "")]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_first_line(module: Any) -> str:
    """A module's docstring without its title."""
    return (inspect.getdoc(module) or "").partition("\n")[2].strip()


def public_members(class_: type) -> list[tuple[str, Any]]:
    """Methods and properties that are made in the class itself, in the order of the source."""
    return [
        (name, member)
        for name, member in vars(class_).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]


def entry(thing: Any, name: str, heading: str) -> list[str]:
    """Heading, signature and description of a function, class, method or property."""
    shown = signature(thing, name)
    return [f"{heading} `{name}`", f"```python\n{shown}\n```", prose(inspect.getdoc(thing) or "")]


def signature(thing: Any, name: str) -> str:
    """The signature as it is written in a call's documentation, one argument a line where it is long."""
    if isinstance(thing, property):
        return f"{name}: {inspect.signature(thing.fget).return_annotation}"  # type: ignore[arg-type]
    found = inspect.signature(inspect.unwrap(thing) if not inspect.isclass(thing) else thing)
    parameters = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    if dataclasses.is_dataclass(thing):
        parameters = [parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters]
    returns = "" if inspect.isclass(thing) else f" -> {found.return_annotation}"
    texts = []
    for number, parameter in enumerate(parameters):
        only_now = parameter.kind is parameter.KEYWORD_ONLY
        if only_now and (number == 0 or parameters[number - 1].kind is not parameter.KEYWORD_ONLY):
            texts.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        texts.append(f"{parameter.name}: {parameter.annotation}{default}")
    line = f"{name}({', '.join(texts)}){returns}"
    if len(line) <= WIDEST:
        return line
    return "\n".join([f"{name}(", *(f"    {text}," for text in texts), f"){returns}"])


def prose(docstring: str) -> str:
    """A docstring as Markdown: parameters as a list, examples as code, tables and paragraphs as they are."""
    blocks: list[str] = []
    kind = ""
    for line in docstring.splitlines():
        text = line.strip()
        previous, kind = kind, kind_of(line, kind)
        if kind == "code":
            text = re.sub(r" +# doctest: .*", "", line.strip() if text.startswith(">>>") else line)
        parameter = PARAMETER.fullmatch(text)
        if kind == "list" and parameter and not line.startswith(" "):
            text = f"- **{parameter[1]}**: {parameter[2]}"
        if not kind:
            continue
        if kind == previous and blocks:
            blocks[-1] += " " + text if kind == "list" and not text.startswith("- **") else "\n" + text
        else:
            blocks.append(text)
        if kind == "code" and previous != "code":
            blocks[-1] = "```pycon\n" + text
    closed = [block + "\n```" if block.startswith("```") else block for block in blocks]
    return "\n\n".join(closed)


def kind_of(line: str, before: str) -> str:
    """What a docstring's line belongs to, given the line before: "" (nothing), "text", "list", "table" or "code"."""
    if not line.strip():
        return ""
    if line.lstrip().startswith(">>>") or before == "code":
        return "code"
    if line.startswith("|"):
        return "table"
    if PARAMETER.fullmatch(line) or (before == "list" and line.startswith("  ")):
        return "list"
    return "text"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is up to date")
    options = parser.parse_args(arguments)
    if not options.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE} is not what the docstrings say; run python tools/api_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
