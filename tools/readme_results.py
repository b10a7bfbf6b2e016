"""Write the measured tables of README.md anew: `python tools/readme_results.py`, after `hpcm eval` has written the results file.

The text between the markers `<!-- results -->` and `<!-- /results -->` is made of docs/results/kodak-phase1-lite.json and of nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hpcm_codec.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"


def rates(results: dict[str, Any]) -> list[str]:
    """The table of means per quality."""
    columns = ("bpp", "psnr-rgb", "ms-ssim-rgb", "encoding_time", "decoding_time")
    lines = ["| quality | bpp | PSNR dB | MS-SSIM | encode s | decode s |", "|---:|---:|---:|---:|---:|---:|"]
    for quality, *values in zip(results["qualities"], *(results["results"][column] for column in columns), strict=True):
        bpp, psnr, similarity, encode, decode = values
        lines.append(f"| {quality:g} | {bpp:.3f} | {psnr:.2f} | {similarity:.4f} | {encode:.2f} | {decode:.2f} |")
    return lines


def comparisons(results: dict[str, Any]) -> list[str]:
    """The table of BD-rates, best first; what we win is in bold."""
    lines = ["| against | bits at equal PSNR (BD-rate) | PSNR at equal bits |", "|---|---:|---:|"]
    for row in sorted(results["comparisons"], key=lambda row: row["bd_rate"]):
        rate = f"{row['bd_rate']:+.1f}%".replace("-", "−")
        quality = f"{row['bd_quality']:+.2f} dB".replace("-", "−")
        lines.append(f"| {row['anchor']} | {f'**{rate}**' if row['bd_rate'] < 0 else rate} | {quality} |")
    return lines


def section(results: dict[str, Any]) -> str:
    machine = results["machine"]
    intro = (
        f"The {results['images']} Kodak pictures, really encoded and decoded, whole files counted; means of RGB PSNR and MS-SSIM.\n"
        f"Checkpoint `{results['checkpoint']['identity']}`, {results['checkpoint']['profile']} profile, on {machine['processor']} with "
        f"{machine['cores']} cores, no GPU, torch {machine['torch']};\ntimes are from pixels to a file's bytes and back, model loaded.\n"
    )
    return "\n".join([intro, *rates(results), "", *comparisons(results), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "kodak-phase1-lite.json")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    write_atomically(readme, f"{before}{BEGIN}{section(results)}{END}{after}".encode(), overwrite=True)
    print(section(results))


if __name__ == "__main__":
    main()
