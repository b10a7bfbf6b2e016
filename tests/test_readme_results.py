"""The README's figures come from a results file and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import load_tool
from hpcm_codec.evaluation.reference import find_reference
from hpcm_codec.evaluation.sections import with_section

README = "# Title\n\nbefore\n\n<!-- results -->\nold\n<!-- /results -->\n\nafter\n"


@pytest.fixture(scope="module")
def tool(root: Path) -> ModuleType:
    return load_tool(root, "readme_results")


def results_like(reference: str, factor: float) -> dict[str, Any]:
    """Results of a codec that takes `factor` times the bits of a reference curve, everywhere."""
    data = find_reference(reference).data["results"]
    return {
        "name": "hpcm test",
        "results": {**data, "bpp": [factor * rate for rate in data["bpp"]]},
        "qualities": list(range(len(data["bpp"]))),
        "images": 24,
        "dataset": "kodak",
        "machine": {"processor": "Abacus", "cores": 2, "python": "3.12"},
        "checkpoint": {"model": "test", "identity": "0123456789abcdef"},
    }


def test_the_section_says_what_the_results_say_and_nothing_else_changes(tool: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results, readme, plot = tmp_path / "r.json", tmp_path / "README.md", tmp_path / "docs" / "curve.png"
    plot.parent.mkdir()
    results.write_text(json.dumps(results_like("avif", 0.9)))
    readme.write_text(README)
    arguments = [str(results), "--readme", str(readme), "--plot", str(plot)]
    assert tool.main([*arguments, "--check"]) != 0
    assert readme.read_text() == README
    assert tool.main(arguments) == 0
    text, picture = readme.read_text(), plot.read_bytes()
    assert text.startswith("# Title\n\nbefore\n\n<!-- results -->\n") and text.endswith("<!-- /results -->\n\nafter\n")
    assert "old" not in text
    assert "| AVIF (default tune) | **−10.0%** |" in text
    assert "(docs/curve.png)" in text and "0123456789abcdef" in text
    assert "beats JPEG, " in text and "does not yet beat" in text and "VVC intra" in text
    assert picture.startswith(b"\x89PNG")
    assert tool.main(arguments) == 0
    assert (readme.read_text(), plot.read_bytes()) == (text, picture)
    assert tool.main([*arguments, "--check"]) == 0


def test_curves_that_do_not_meet_get_no_figure(tool: ModuleType) -> None:
    far = results_like("avif", 1.0)
    far["results"] = {"bpp": [5, 6, 7], "psnr-rgb": [60, 61, 62]}
    far["qualities"] = [1, 2, 3]
    assert "| JPEG (4:2:0, optimised) | – | – | no common PSNR |" in tool.section(far, "x.png")


def test_what_is_no_results_file_or_no_readme_with_markers_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    results, readme = tmp_path / "r.json", tmp_path / "README.md"
    results.write_text(json.dumps({"results": find_reference("jpeg").data["results"]}))
    readme.write_text(README)
    assert tool.main([str(results), "--readme", str(readme)]) == 5
    results.write_text(json.dumps(results_like("jpeg", 1.0)))
    readme.write_text("no markers")
    assert tool.main([str(results), "--readme", str(readme)]) == 2
    assert readme.read_text() == "no markers"


def test_the_readme_has_its_markers(tool: ModuleType, root: Path) -> None:
    assert with_section((root / "README.md").read_text(), tool.SECTION, "x\n")
