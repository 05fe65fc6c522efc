"""The count of what is trained: every parameter once, in a group that has a name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import cli
from lib.bases import catalog
from lib.commands.parameters import GROUPS, count
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam
from lib.model.catalog import BaseEntry
from lib.model.medsa import MedSA
from lib.settings import load_settings

DIMS = AdapterDims(4, 8, 8, 4, 2, depth=3)


def test_every_parameter_is_counted_once(tiny_spec: BaseSpec) -> None:
    sam = build_sam(tiny_spec)
    model = MedSA(sam, tiny_spec, DIMS, ("one", "two"))
    counted = count(BaseEntry(tiny_spec, DIMS), ("one", "two"), 0.02)
    assert counted.trained == sum(parameter.numel() for parameter in model.adapters.parameters())
    assert counted.frozen == sum(parameter.numel() for parameter in sam.parameters())
    assert counted.share == counted.trained / counted.frozen
    assert counted.budget == 0.02
    assert sum(counted.groups.values()) == counted.trained


def test_the_groups_hold_what_their_names_say(tiny_spec: BaseSpec) -> None:
    groups = count(BaseEntry(tiny_spec, DIMS), ("one", "two"), 0.02).groups
    assert set(groups) == set(GROUPS)
    adapter = 2 * 32 * 4 + 4 + 32  # two linear layers with bias, 32 channels to 4 and back
    assert groups["encoder.space"] == groups["encoder.depth"] == groups["encoder.mlp"] == 2 * adapter
    assert groups["encoder.relative_depth"] == 2 * 5 * 16  # 5 distances of 3 slices, 16 channels a head
    assert groups["decoder.mlp"] == groups["decoder.image"] == 2 * (2 * 256 * 8 + 8 + 256)
    assert groups["labels"] == 2 * 256


def test_parts_that_are_not_there_are_not_counted(tiny_spec: BaseSpec) -> None:
    flat = count(BaseEntry(tiny_spec, replace(DIMS, depth=1)), ("one",), 0.02).groups
    assert set(GROUPS) - set(flat) == {"encoder.depth", "encoder.relative_depth"}
    plain = count(BaseEntry(tiny_spec, replace(DIMS, prompt_arm="none")), ("one",), 0.02).groups
    hyper = count(BaseEntry(tiny_spec, DIMS), ("one",), 0.02).groups
    assert 0 < plain["decoder.prompt"] < hyper["decoder.prompt"]


def test_the_table_has_every_base_and_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["parameters"]) == 0
    text = capsys.readouterr().out
    settings = load_settings(cli.APP_DIR / "configs", {})
    entries = catalog(settings, cli.APP_DIR).entries
    assert all(part in text for part in (*GROUPS.values(), *entries, "trained in all", "frozen"))
    vit_b = count(entries["vit_b"], list(settings.task.labels), 0.02)
    assert all(
        part in text for part in (f"{vit_b.trained:,}", f"{vit_b.frozen:,}", f"{vit_b.share:.2%}", "2.00%")
    )


def test_bases_and_settings_can_be_chosen_and_the_figures_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {size: tmp_path / f"{size}.json" for size in (512, 1024)}
    for size, file in files.items():
        conf = ["--task", "object", "--conf", "image_size", str(size)]
        assert cli.main(["parameters", "--base", "vit_b", "vit_t", *conf, "--json", str(file)]) == 0
    assert "vit_l" not in capsys.readouterr().out
    small, large = (json.loads(file.read_text()) for file in files.values())
    assert list(small) == ["vit_b", "vit_t"]
    assert small["vit_b"]["groups"] == large["vit_b"]["groups"]
    assert small["vit_b"]["groups"]["labels"] == 256  # the task `object` has one label
    # Positions for 32 x 32 instead of 64 x 64 tokens, and 64 rows less in both tables of 4 global blocks.
    fewer = (64**2 - 32**2) * 768 + 4 * 2 * 64 * 64
    assert large["vit_b"]["frozen"] - small["vit_b"]["frozen"] == fewer


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--base", "vit_x"], "base: 'vit_x' is not accepted; allowed: one of vit_t, vit_b, vit_l, vit_h"),
        (["--conf", "image_size", "500"], "a multiple of 16 from 256 to 1024"),
    ],
)
def test_what_there_is_not_is_named(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["parameters", *arguments]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""
