"""The reference curves that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpcm_codec.cli.eval import command
from hpcm_codec.errors import FileError, UsageError
from hpcm_codec.evaluation import bjontegaard
from hpcm_codec.evaluation.reference import find_reference, load_anchor, shipped_references

ANCHORS = Path(__file__).resolve().parents[2] / "shared" / "anchors"
METRICS = (bjontegaard.PSNR, bjontegaard.MS_SSIM_DB)


def test_every_shipped_curve_has_a_source_and_is_a_curve() -> None:
    found = list(shipped_references())
    assert {reference.dataset for reference in found} == {"kodak", "clic2020", "tecnick"}
    assert len({reference.full_key for reference in found}) == len(found) > 80
    for reference in found:
        assert reference.data["source"] and reference.data["name"], reference.full_key
        lengths = {len(values) for values in reference.data["results"].values()}
        assert len(lengths) == 1, reference.full_key
        curves = [reference.curve(metric) for metric in METRICS if metric in reference.data["results"]]
        assert curves, reference.full_key


@pytest.mark.skipif(not ANCHORS.is_dir(), reason="../shared/anchors is not there")
def test_shipped_curves_are_those_that_were_collected() -> None:
    for path in ANCHORS.glob("*/*/*.json"):
        if path.stem.startswith("_"):
            continue
        dataset = {"clic": "clic2020"}.get(path.parts[-3], path.parts[-3])
        key = path.stem.replace("_cuda", "").replace("_ans", "")
        shipped = find_reference(key, dataset).data["results"]
        collected = json.loads(path.read_text())["results"]
        for name in ("bpp", "psnr-rgb", "ms-ssim-rgb"):
            if name in collected:
                assert shipped[name] == pytest.approx(collected[name], abs=1e-6), (dataset, key, name)


def test_an_anchor_is_a_name_a_name_with_its_data_set_or_a_file(tmp_path: Path) -> None:
    assert load_anchor("lalic", "tecnick").bpp == load_anchor("tecnick/lalic", "kodak").bpp
    assert load_anchor("lalic", "tecnick").bpp != load_anchor("lalic").bpp
    assert load_anchor("lalic", "my holiday").bpp == load_anchor("lalic", "kodak").bpp
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(find_reference("jpeg").data))
    assert load_anchor(str(file)) == load_anchor("jpeg")
    with pytest.raises(UsageError, match="did you mean jpeg"):
        load_anchor("jpge")
    with pytest.raises(UsageError, match="no reference curves"):
        load_anchor("imagenet/jpeg")
    with pytest.raises(FileError, match="no such file"):
        load_anchor(str(tmp_path / "nowhere.json"))


def test_the_list_of_anchors_names_each_with_its_source() -> None:
    result = CliRunner().invoke(command, ["--list-anchors"])
    assert result.exception is None
    lines = result.output.splitlines()
    assert [line for line in lines if line.startswith("kodak/jpeg ") and "measured for this project" in line]
    assert len([line for line in lines if "/" in line.split(" ")[0]]) == len(list(shipped_references()))


def test_a_curve_without_the_metric_says_how_to_get_a_comparison() -> None:
    with pytest.raises(UsageError, match=r"JPEG has no ssimulacra2; measure it in the same run .*--codec hpcm,jpeg$"):
        load_anchor("jpeg", "kodak", "ssimulacra2")
    with pytest.raises(UsageError, match=r"has no ssimulacra2; compare by another --metric"):
        load_anchor("vtm91-lalic", "kodak", "ssimulacra2")
