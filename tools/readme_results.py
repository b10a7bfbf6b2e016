"""Write the README's figures anew from a results file: its tables, its curve and the sentence that sums them up.

    hpcm eval --dataset kodak --json docs/results/kodak-phase1-lite.json -f
    python tools/readme_results.py docs/results/kodak-phase1-lite.json

The text between `<!-- results -->` and `<!-- /results -->` in README.md, and docs/curve.png, are made of that file and of
the reference curves that ship with the package, and of nothing else: every delta is computed here. The same file gives
the same README and picture. `--check` writes nothing and fails when the README is not what the file says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_codec.errors import FileError, HpcmError, UsageError
from hpcm_codec.evaluation import bjontegaard
from hpcm_codec.evaluation.machine import machine_in_words
from hpcm_codec.evaluation.plot import check_plot, draw_curves
from hpcm_codec.evaluation.reference import find_reference
from hpcm_codec.evaluation.sections import with_sections
from hpcm_codec.system.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "kodak-phase1-lite.json"
SECTION = "results"
DASH = "–"
# The shipped curves that the README compares with, and what it calls them.
ANCHORS = {
    "jpeg": "JPEG (4:2:0, optimised)",
    "jxl": "JPEG XL (whose encoder aims at perception, not at PSNR)",
    "webp": "WebP",
    "jpeg2000": "JPEG 2000",
    "avif": "AVIF (default tune)",
    "avif-tune-psnr": "AVIF (tuned for PSNR)",
    "x265-444-10b-intra": "HEVC intra (x265, 4:4:4, 10 bit)",
    "vtm91-lalic": "VVC intra (VTM-9.1, as published with LALIC)",
    "hpcm-base": "HPCM-Base (as published)",
}
DRAWN = ("jpeg", "webp", "jpeg2000", "avif", "avif-tune-psnr", "x265-444-10b-intra", "vtm91-lalic")
LEVEL = 2.0  # per cent of rate within which two codecs count as level


@dataclass(frozen=True)
class Against:
    """A line of the table of deltas; without figures where the curves do not meet. short: the name without brackets."""

    title: str
    short: str
    comparison: bjontegaard.Comparison | None


def compare_with_anchors(results: dict[str, Any], dataset: str) -> list[Against]:
    """Deltas against every anchor there is for the data set, the best first."""
    own = bjontegaard.Curve.from_results(results)
    lines = []
    for key, title in ANCHORS.items():
        try:
            anchor = find_reference(key, dataset).curve()
        except UsageError:
            continue
        try:
            comparison = bjontegaard.compare(anchor, own)
        except UsageError:
            comparison = None
        lines.append(Against(title, title if key.startswith("avif") else title.split(" (")[0], comparison))
    return sorted(lines, key=lambda line: float("inf") if line.comparison is None else line.comparison.bd_rate)


def means_table(results: dict[str, Any]) -> list[str]:
    """The means per quality, as lines of Markdown."""
    columns = ("bpp", "psnr-rgb", "ms-ssim-rgb", "encoding_time", "decoding_time")
    lines = ["| quality | bpp | PSNR dB | MS-SSIM | encode s | decode s |", "|---:|---:|---:|---:|---:|---:|"]
    values = (results["results"].get(column) or [None] * len(results["qualities"]) for column in columns)
    for quality, *figures in zip(results["qualities"], *values, strict=True):
        cells = (_figure(value, digits) for value, digits in zip(figures, (3, 2, 4, 2, 2), strict=True))
        lines.append(f"| {quality:g} | {' | '.join(cells)} |")
    return lines


def deltas_table(lines: Sequence[Against]) -> list[str]:
    """The deltas as lines of Markdown; what we win is in bold."""
    table = ["| against | bits at equal PSNR (BD-rate) | PSNR at equal bits | compared over |", "|---|---:|---:|---:|"]
    for line in lines:
        found = line.comparison
        if found is None:
            table.append(f"| {line.title} | {DASH} | {DASH} | no common PSNR |")
            continue
        rate = _signed(found.bd_rate, 1) + "%"
        decibels = DASH if found.bd_quality is None else _signed(found.bd_quality, 2) + " dB"
        low, high = found.quality_range
        bold = f"**{rate}**" if found.bd_rate < 0 else rate
        table.append(f"| {line.title} | {bold} | {decibels} | {low:.1f}–{high:.1f} dB |")
    return table


def verdict(lines: Sequence[Against]) -> str:
    """One sentence: what it beats, what it is level with, what it does not beat."""
    rates = [(line.short, line.comparison.bd_rate) for line in lines if line.comparison is not None]
    groups = {
        "beats": [name for name, rate in rates if rate < -LEVEL],
        "is about level with": [name for name, rate in rates if abs(rate) <= LEVEL],
        "does not yet beat": [name for name, rate in rates if rate > LEVEL],
    }
    parts = [f"{verb} {_listed(names)}" for verb, names in groups.items() if names]
    return f"So at equal PSNR it {_listed(parts)}." if parts else ""


def section(results: dict[str, Any], plot: str) -> str:
    """What stands between the markers. plot: the picture's path, as the README names it."""
    dataset = str(results.get("dataset", "kodak"))
    checkpoint = results.get("checkpoint", {})
    lines = compare_with_anchors(results, dataset)
    profile = f", {checkpoint['profile']} profile" if "profile" in checkpoint else ""
    intro = (
        f"The {results['images']} pictures of {dataset.capitalize()}, really encoded and decoded, whole files counted; means of RGB PSNR\n"
        f"and MS-SSIM. Checkpoint `{checkpoint.get('identity', 'unknown')}`{profile}; {machine_in_words(results['machine'])}.\n"
        "Times are from pixels to a file's bytes and back, model loaded. Made by `python tools/readme_results.py`, not by hand."
    )
    picture = f"![PSNR against bits per pixel: hpcm and other codecs]({plot})"
    parts = [intro, picture, "\n".join(means_table(results)), "\n".join(deltas_table(lines)), verdict(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _figure(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="of `hpcm eval --json`")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "curve.png")
    parser.add_argument("--check", action="store_true", help="fail when the README is not up to date; write nothing")
    options = parser.parse_args(arguments)
    try:
        results = bjontegaard.read_results(options.results)
        missing = [key for key in ("qualities", "images", "machine") if key not in results]
        if missing:
            raise FileError(
                f"has no {', '.join(missing)}", file=options.results, advice="make it with `hpcm eval --json`"
            )
        shown = options.plot.resolve()
        folder = options.readme.resolve().parent
        text = section(results, (shown.relative_to(folder) if shown.is_relative_to(folder) else shown).as_posix())
        updated = with_sections(options.readme, {SECTION: text}, check=options.check)
        if options.check:
            return 0
        check_plot(str(options.plot))
        dataset = str(results.get("dataset", "kodak"))
        curves = [results]
        for key in DRAWN:
            try:
                curves.append(find_reference(key, dataset).data)
            except UsageError:
                continue
        picture = draw_curves(curves, options.plot.suffix, dataset=dataset)
        write_atomically(options.plot, picture, overwrite=True)
        write_atomically(options.readme, updated.encode(), overwrite=True)
    except HpcmError as error:
        print(f"readme_results: {error}", file=sys.stderr)
        return error.exit_status
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
