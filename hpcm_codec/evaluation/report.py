"""HTML pages of results: one file each, which contains pictures and scripts and needs no network.

`report_page` is what `hpcm eval --report` writes (curves, tables, sliders), `compare_page` what `hpcm compare` writes
(sliders). The page's parts are in page/; its data is a JSON object inside it, so that the figures can be taken
from there.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from hpcm_codec.evaluation.bjontegaard import MS_SSIM_DB, PSNR
from hpcm_codec.evaluation.machine import machine_in_words
from hpcm_codec.evaluation.metrics import ms_ssim_db
from hpcm_codec.evaluation.perceptual import FLIP, SSIMULACRA2, TITLES
from hpcm_codec.evaluation.versions import Slider

STYLES = ("style.css",)
SCRIPTS = ("viewer.js", "curves.js", "table.js", "main.js")
# The columns of the table of pictures: key of a row, heading, digits after the point.
COLUMNS = (
    ("codec", "codec", None),
    ("image", "picture", None),
    ("quality", "quality", 1),
    ("bytes", "bytes", 0),
    ("bpp", "bpp", 4),
    ("psnr", "PSNR dB", 2),
    ("ms_ssim", "MS-SSIM", 4),
    (SSIMULACRA2, TITLES[SSIMULACRA2], 2),
    (FLIP, TITLES[FLIP], 4),
    ("encoding_time", "encode s", 3),
    ("decoding_time", "decode s", 3),
)


def report_page(results: dict[str, Any], curves: Sequence[dict[str, Any]], sliders: Sequence[Slider]) -> str:
    """The report of a run as an HTML document.

    results: of the first codec, the others' among its "other_codecs", comparisons among its "comparisons".
    curves:  the results objects that are drawn, those of the run first, then reference curves.
    """
    measured = [results, *results.get("other_codecs", ())]
    there = {key for own in measured for row in own["per_image"] for key in row}
    columns = [column for column in COLUMNS if column[0] in there or column[0] == "codec"]
    perceptual = [(name, TITLES[name]) for name in (SSIMULACRA2, FLIP) if name in there]
    data = {
        "sliders": [slider.for_page() for slider in sliders],
        "curves": [_curve(curve, any(curve is own for own in measured)) for curve in curves],
        "columns": [{"key": key, "heading": heading, "digits": digits} for key, heading, digits in columns],
        "perceptual": perceptual,
        "rows": [{"codec": own["name"], **_shown(row, columns)} for own in measured for row in own["per_image"]],
        "means": [_means(own) for own in measured],
        "comparisons": results.get("comparisons", []),
        "notes": [f"{own['name']}: {own['description']}" for own in measured]
        + [f"{curve['name']}: {curve['source']}" for curve in curves if "source" in curve]
        + [f"Measured on {machine_in_words(results['machine'])}"],
    }
    title = f"{results['name']} on {results['dataset']}"
    lead = f"{results['images']} pictures, really encoded and decoded, whole files counted."
    return _page(title, lead, data)


def compare_page(sliders: Sequence[Slider], descriptions: Sequence[str]) -> str:
    """A page of sliders alone. descriptions: of the codecs, a line each."""
    names = ", ".join(slider.name for slider in sliders)
    codecs = [version.name for version in sliders[0].versions[1:]]
    lead = f"The same picture by {', '.join(codecs)}, in files of the same size or the least above it."
    data = {"sliders": [slider.for_page() for slider in sliders], "notes": list(descriptions)}
    return _page(names, lead, data)


def _page(title: str, lead: str, data: dict[str, Any]) -> str:
    """The document with its parts put in. In a script element only "</" and "<!--" could end the data: < is escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "TITLE": html.escape(title),
        "LEAD": html.escape(lead),
        "STYLE": "\n".join(map(_part, STYLES)),
        "SCRIPT": "\n".join(map(_part, SCRIPTS)),
        "DATA": text,
    }
    # the data last: it may contain text that looks like a placeholder
    page = _part("page.html")
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part, 1)
    return page


def _part(name: str) -> str:
    return (resources.files("hpcm_codec.evaluation") / "page" / name).read_text(encoding="utf-8")


def _curve(data: dict[str, Any], own: bool) -> dict[str, Any]:
    results = data["results"]
    count = len(results["bpp"])
    decibels = results.get(MS_SSIM_DB)
    if decibels is None and "ms-ssim-rgb" in results:
        decibels = [ms_ssim_db(value) for value in results["ms-ssim-rgb"]]
    settings = data.get("qualities") or data.get("quality")
    points = [
        {
            "bpp": results["bpp"][place],
            PSNR: results.get(PSNR, [None] * count)[place],
            MS_SSIM_DB: None if decibels is None else decibels[place],
            SSIMULACRA2: results.get(SSIMULACRA2, [None] * count)[place],
            "quality": None if settings is None else settings[place],
        }
        for place in range(count)
    ]
    return {"name": data["name"], "own": own, "points": sorted(points, key=lambda point: float(point["bpp"]))}


def _means(data: dict[str, Any]) -> dict[str, Any]:
    results = data["results"]
    keys = ("bpp", PSNR, "ms-ssim-rgb", SSIMULACRA2, FLIP, "encoding_time", "decoding_time")
    rows = [
        {"quality": quality, **{key: results[key][place] for key in keys if key in results}}
        for place, quality in enumerate(data["qualities"])
    ]
    return {"name": data["name"], "rows": rows}


def _shown(row: dict[str, Any], columns: Sequence[tuple[str, str, int | None]]) -> dict[str, Any]:
    return {key: row.get(key) for key, _, _ in columns if key != "codec"}
