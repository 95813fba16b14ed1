"""Another backbone than a recipe's, chosen by `--backbone.name`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from eutectic.atoms import EutecticError
from eutectic.cli.options import pretraining_settings
from eutectic.models import GemNetOCSettings, PaiNNSettings
from eutectic.models.gemnet_oc import GemNetOC
from eutectic.models.painn import PaiNN
from eutectic.recipes import RECIPES
from eutectic.tasks.targets import targets_for


def test_the_settings_of_the_recipes_backbone_are_dropped_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"backbone": {"name": "painn", "settings": {"width": 16}}}
    chosen = pretraining_settings("demo", changes).backbone
    assert chosen.of_backbone() == PaiNNSettings(width=16)
    told = capsys.readouterr()
    assert "painn in place of gemnet_oc: the settings of gemnet_oc are dropped" in told.err
    assert told.out == ""
    assert pretraining_settings("demo", {"backbone": {"name": "painn"}}).backbone.of_backbone() == PaiNNSettings()


def test_the_same_backbone_keeps_them(capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"backbone": {"name": "gemnet_oc", "settings": {"atom_width": 32}}}
    chosen = pretraining_settings("demo", changes).backbone.of_backbone()
    assert chosen == GemNetOCSettings.tiny(radial_cutoff=None).model_copy(update={"atom_width": 32})
    assert capsys.readouterr().err == ""


def test_a_file_that_mixes_them_is_refused_in_words(tmp_path: Path) -> None:
    values = RECIPES["demo"]().model_dump(mode="json")
    values["backbone"]["name"] = "painn"
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(EutecticError, match=r"mixed\.yaml.*backbone\.settings: .*num_radial, .*not of painn"):
        pretraining_settings(str(tmp_path / "mixed.yaml"), {})


def test_forces_are_read_from_what_the_backbone_has() -> None:
    of_edges = RECIPES["demo"]().sets["molecules"].targets
    edges = GemNetOC(GemNetOCSettings.tiny(radial_cutoff=6.0))
    vectors = PaiNN(PaiNNSettings.tiny().model_copy(update={"edge_width": 0, "cutoff": 6.0}))
    assert targets_for(of_edges, edges) == of_edges
    of_vectors = targets_for(of_edges, vectors)
    assert of_vectors["forces"].head.kind == "atom_vector"
    assert targets_for(of_vectors, edges) == of_edges
