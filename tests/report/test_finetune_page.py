"""The page of one fine-tuning run: complete, and readable where numbers are missing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_up import slab
from pages import HOSTILE, check_self_contained

from eutectic.report.finetune_page import write_finetune_page

TRUTH, PREDICTION = [-1.0, 0.0, 1.0], [-0.9, 0.1, 1.2]


def result(**changes: Any) -> dict[str, Any]:
    """A run judged by its forces, with 4 validations."""
    return {
        "name": "ethanol",
        "start": "pretrained",
        "seed": 3,
        "learning_rate": 0.002,
        "weight_decay": 0.01,
        "property": "forces",
        "unit": "meV/Å",
        "level_of_theory": "PBE+TS",
        "dataset": "rmd17_ethanol",
        "total_steps": 300,
        "steps": [0, 100, 200, 300],
        "seconds": [0.0, 1.0, 2.0, 3.0],
        "errors": [800.0, 200.0, 70.0, 80.0],
        "best_step": 200,
        "test_error": 75.0,
        "test_errors": {"forces": 75.0, "energy": 12.0},
        "baseline_error": 900.0,
        "truth": TRUTH,
        "prediction": PREDICTION,
        "trained_on": 1000,
        "validated_on": 50,
        "tested_on": 200,
        "wall_seconds": 3.2,
    } | changes


EVERY_PROPERTY = {
    "test_baselines": {"forces": 900.0, "energy": 150.0},
    "units": {"forces": "meV/Å", "energy": "meV"},
    "curves": {"forces": [800.0, 200.0, 70.0, 80.0], "energy": [140.0, 30.0, 11.0, 10.0]},
    "parity": {"forces": [TRUTH, PREDICTION], "energy": [TRUTH, PREDICTION]},
}


def write(path: Path, values: dict[str, Any], **more: Any) -> str:
    write_finetune_page(path / "report.html", values, **more)
    return check_self_contained(path / "report.html")[0]


def test_names_everything(tmp_path: Path) -> None:
    settings = {"start": "eutectic-small", "optimiser": {"ema": 0.99}}
    text = write(tmp_path, result(), settings=settings, environment={"torch": "2.8"}, examples=[slab()])
    for words in (
        "<b>75.0 <small>meV/Å</small></b>test error, forces",
        "<b>12.0×</b>below the baseline of 900 meV/Å (zero forces)",
        "rmd17_ethanol",
        "PBE+TS",
        "1\u202f000 training, 50 validation, 200 test",
        "pre-trained model eutectic-small",
        "learning rate 0.002, weight decay 0.01",
        "200 (lowest validation error",
        "<b>3.2 s</b>of training, 300 steps",
        "Lowest validation error of the EMA weights: 70.0 meV/Å, 12.9× below the baseline of 900",
        "3 test values",
        "<dt>optimiser.ema</dt><dd>0.99</dd>",
        "<dt>torch</dt><dd>2.8</dd>",
        "Cu<sub>12</sub>HO",
    ):
        assert words in text, words
    assert text.count("<svg") == 2
    assert "Training loss" not in text


def test_every_property_has_its_error_curve_and_predictions(tmp_path: Path) -> None:
    text = write(tmp_path, result(**EVERY_PROPERTY))
    assert text.count("<svg") == 4
    assert "12.5×" in text  # energy, below its baseline
    assert "Lowest validation error of the EMA weights: 10.0 meV, 15.0× below the baseline of 150" in text
    assert "200 (lowest mean of validation error / baseline over properties" in text
    assert "baseline: element references" in text


def test_validation_baselines_belong_to_the_learning_curve(tmp_path: Path) -> None:
    text = write(tmp_path, result(validation_baselines={"forces": 700.0}))
    assert "70.0 meV/Å, 10.0× below the baseline of 700" in text
    assert "below the baseline of 900 meV/Å" in text


@pytest.mark.parametrize("by_property", [{"forces": 1.0, "energy": 0.5}, {"ethanol": {"forces": 1.0, "energy": 0.5}}])
def test_training_loss_by_property(tmp_path: Path, by_property: dict[str, Any]) -> None:
    journal = [{"step": s, "loss": 1.5 / s, "loss_by_property": by_property} for s in (1, 2, 3)]
    text = write(tmp_path, result(), journal=journal)
    assert text.count("<svg") == 3
    assert "each property in its colour" in text
    assert "each property" not in write(tmp_path, result(), journal=[{"step": 1, "loss": None}])


def test_no_test_structures(tmp_path: Path) -> None:
    none = {"test_error": None, "test_errors": {}, "baseline_error": None, "truth": [], "prediction": []}
    text = write(tmp_path, result(tested_on=0, **none, validation_baselines={"forces": 700.0}))
    assert "<b>70.0 <small>meV/Å</small></b>validation error, forces" in text
    assert "<b>10.0×</b>below the baseline" in text
    assert "there are no test structures" in text
    assert "test error" not in text
    assert text.count("<svg") == 1


def test_an_error_above_its_baseline_is_no_gain(tmp_path: Path) -> None:
    text = write(tmp_path, result(baseline_error=50.0))
    assert "below the baseline" not in text
    assert "<b>50.0 <small>meV/Å</small></b>test error of the baseline (zero forces)" in text
    assert "no better than the baseline of 50.0" in text


def test_classes_have_no_scatter_of_predictions(tmp_path: Path) -> None:
    classes = {"property": "is_metal", "unit": "", "test_errors": {"is_metal": 0.1}, "test_error": 0.1}
    text = write(tmp_path, result(**classes))
    assert "Errors: error rate" in text
    assert "most frequent class" in text
    assert text.count("<svg") == 1


NAN = math.nan
ODD: dict[str, dict[str, Any]] = {
    "nothing": dict.fromkeys(result()),
    "only a property": {"property": "forces"},
    "empty": {},
    "a property of the user's": result(property="stickiness", unit="", test_errors=None, errors=[4, 3, 2, 1]),
    "numbers that are none": result(
        errors=[NAN, None, 1.0, NAN],
        test_error=NAN,
        test_errors={"forces": NAN, "energy": None},
        baseline_error=NAN,
        truth=[NAN, 1.0, None],
        prediction=[1.0, NAN, 2.0],
        wall_seconds=NAN,
        learning_rate=None,
        best_step=None,
    ),
    "only NaN": result(errors=[NAN] * 4, truth=[NAN], prediction=[NAN], baseline_error=0.0, test_error=0.0),
    "integers": result(
        errors=[8, 4, 2, 2], test_errors={"forces": 2}, baseline_error=9, wall_seconds=3, learning_rate=1
    ),
    "a single validation": result(steps=[0], errors=[5.0], best_step=0),
}


@pytest.mark.parametrize("name", ODD)
def test_missing_numbers_are_dashes(tmp_path: Path, name: str) -> None:
    text = write(tmp_path, ODD[name])
    assert not re.search(r"[\s>(](nan|None)[\s<.,)]", text)


def test_hostile_names_stay_text_and_pages_are_repeatable(tmp_path: Path) -> None:
    named = dict.fromkeys(("name", "property", "unit", "level_of_theory", "dataset", "model"), HOSTILE)
    values = result(**named, test_errors={HOSTILE: 1.0})
    journal = [{"step": s, "loss": 1.0 / s, "loss_by_property": {HOSTILE: 1.0}} for s in (1, 2)]
    texts = [write(tmp_path, values, journal=journal, settings={HOSTILE: HOSTILE}, examples=[slab()]) for _ in range(2)]
    assert texts[0] == texts[1]
    assert "<script>" not in texts[0]
