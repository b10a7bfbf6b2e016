"""Results as tables and lines on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hpcm_codec.evaluation.perceptual import FLIP, SSIMULACRA2, TITLES
from hpcm_codec.evaluation.runner import Means, Row, perceptual_of

if TYPE_CHECKING:
    from rich.table import Table

DASH = "–"
MEGABYTE = 1e6
PERCEPTUAL_DIGITS = {SSIMULACRA2: 2, FLIP: 4}


def rows_table(title: str, rows: Sequence[Row]) -> Table:
    """A line for every picture and quality."""
    from rich.table import Table

    table = Table("picture", title=title)
    for heading in ("quality", "bytes", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s", "memory MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        quality = f"{row.quality:g}" if row.setting is None else f"{row.quality:g} ({row.setting:g})"
        figures = (row.bpp, row.psnr, row.ms_ssim, row.encoding_time, row.decoding_time)
        cells = map(shown, figures, (4, 2, 4, 3, 3))
        table.add_row(row.image, quality, f"{row.bytes}", *cells, _memory(row))
    return table


def means_table(title: str, means: Sequence[Means]) -> Table:
    """A line for every quality."""
    from rich.table import Table

    table = Table(title=title)
    for heading in ("quality", "bpp", "PSNR dB", "MS-SSIM", "MS-SSIM dB", "encode s", "decode s", "memory MB"):
        table.add_column(heading, justify="right")
    for mean in means:
        figures = (mean.bpp, mean.psnr, mean.ms_ssim, mean.ms_ssim_db, mean.encoding_time, mean.decoding_time)
        table.add_row(f"{mean.quality:g}", *map(shown, figures, (4, 2, 4, 2, 3, 3)), _memory(mean))
    return table


def perceptual_table(title: str, figures: Sequence[Row] | Sequence[Means]) -> Table | None:
    """The perceptual measures, a line for every picture and quality, or for every quality; None where there are none.

    In a table of their own: with all figures in one, a terminal of 80 columns has no room for digits.
    """
    from rich.table import Table

    names = perceptual_of(figures)
    if not names:
        return None
    table = Table(title=title)
    if isinstance(figures[0], Row):
        table.add_column("picture")
    for heading in ("quality", *(TITLES[name] for name in names)):
        table.add_column(heading, justify="right")
    for one in figures:
        start = [one.image] if isinstance(one, Row) else []
        table.add_row(
            *start, f"{one.quality:g}", *(shown(getattr(one, name), PERCEPTUAL_DIGITS[name]) for name in names)
        )
    return table


def in_words_where_falling(means: Sequence[Means]) -> list[str]:
    """A line for each higher quality that gave smaller files or worse pictures; none for a codec that works correctly.

    means: by rising quality, as `runner.means_of` gives them.
    """
    lines = []
    for lower, higher in pairwise(means):
        for figure, digits in (("bpp", 4), ("psnr", 3)):
            before, after = getattr(lower, figure), getattr(higher, figure)
            if after < before:
                change = f"{before:.{digits}f} to {after:.{digits}f}"
                lines.append(f"{figure} falls from {change} between qualities {lower.quality:g} and {higher.quality:g}")
    return lines


def references_table(references: Sequence[Any]) -> list[str]:
    """A line of text for every shipped curve: name, rates, source; not a table, so that it can be searched with grep."""
    lines = []
    for reference in references:
        low, high = reference.bpp_range()
        metrics = "+".join(
            short for key, short in (("psnr", "PSNR"), ("ms-ssim", "MS-SSIM")) if _has(reference.data["results"], key)
        )
        name = f"{reference.full_key:<52} {low:.2f}–{high:.2f} bpp  {metrics:<12}"
        lines.append(f"{name} {reference.data['name']}; {reference.data['source'].split(';')[0]}")
    return lines


def _has(results: dict[str, Any], beginning: str) -> bool:
    return any(key.startswith(beginning) for key in results)


def _memory(figures: Row | Means) -> str:
    peaks = [peak for peak in (figures.encoding_memory, figures.decoding_memory) if peak is not None]
    return f"{max(peaks) / MEGABYTE:.0f}" if peaks else DASH


def shown(value: float | None, digits: int) -> str:
    """A figure with that many digits after the point, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"
