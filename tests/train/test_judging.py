"""Scores over all properties, heads that have died, and curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eutectic.tasks.metrics import ClassErrorSum, ErrorSum
from eutectic.train.judging import Curve, Judgement, judge, score
from eutectic.train.runtime.launch import make_fabric
from eutectic.train.settings import LoopSettings

FABRIC = make_fabric(LoopSettings(accelerator="cpu"), alone=True)


def energies(predictions: list[float]) -> ErrorSum:
    """Energies of molecules of one to four atoms, with references of −10 eV per atom."""
    errors = ErrorSum()
    for n, (truth, prediction) in enumerate(zip([-9.0, -21.0, -29.5, -40.2], predictions, strict=True), 1):
        errors.add(np.array(truth), np.array(prediction), np.array(-10.0 * n), size=n)
    return errors


def test_errors_and_score_by_hand() -> None:
    found = judge(FABRIC, {"energy": energies([-9.5, -20.5, -29.5, -40.2])}, {})
    assert found.errors["energy"] == pytest.approx(250.0)  # (0.5 + 0.5) / 4 eV
    assert found.baselines["energy"] == pytest.approx(675.0)  # (1 + 1 + 0.5 + 0.2) / 4
    assert found.score == pytest.approx(250 / 675)
    assert found.dead == ()
    assert energies([-9.5, -20.5, -29.5, -40.2]).rmse == pytest.approx(math.sqrt(0.5 / 4))


def test_the_score_weighs_properties_and_leaves_out_those_without_a_baseline() -> None:
    errors, baselines = {"energy": 50.0, "forces": 20.0, "gap": 7.0}, {"energy": 100.0, "forces": 200.0, "gap": 0.0}
    assert score(errors, baselines, {}) == pytest.approx((0.5 + 0.1) / 2)
    assert score(errors, baselines, {"energy": 3.0}) == pytest.approx((3 * 0.5 + 0.1) / 4)
    assert score(errors, baselines, {"energy": 0.0}) == pytest.approx(0.1)
    assert score({"gap": 7.0}, {"gap": 0.0}, {}) == 7.0
    assert math.isnan(score({"gap": math.nan}, {"gap": math.nan}, {}))
    assert math.isnan(score({"energy": math.nan, "forces": 1.0}, baselines, {}))


@pytest.mark.parametrize("constant", [0.0, 0.3, -2.0])
def test_a_head_that_gives_the_same_for_every_atom_is_dead(constant: float) -> None:
    rounding = 1e-8
    dead = [(constant - 10.0) * n + rounding * (-1) ** n for n in range(1, 5)]
    assert judge(FABRIC, {"energy": energies(dead)}, {}).dead == ("energy",)
    alive = [(constant - 10.0) * n + 1e-3 * (-1) ** n for n in range(1, 5)]
    assert judge(FABRIC, {"energy": energies(alive)}, {}).dead == ()


def test_forces_and_classes_die_too_and_constant_labels_do_not() -> None:
    forces, zero = np.array([[0.1, -0.2, 0.3]]), np.zeros((1, 3))
    dead, alive, labels = ErrorSum(), ErrorSum(), ErrorSum()
    dead.add(forces, zero, zero)
    alive.add(forces, 0.01 * forces, zero)
    for _ in range(5):
        labels.add(np.array(2.0), np.array(2.0), np.array(2.0))
    classes = ClassErrorSum()
    for truth in (0, 1, 1, 0):
        classes.add_class(truth, np.array([0.4, 0.6]))
    found = judge(FABRIC, {"forces": dead, "energy": labels, "is_metal": classes}, {})
    assert found.dead == ("forces", "is_metal")
    assert judge(FABRIC, {"forces": alive}, {}).dead == ()


def curve(scores: list[float]) -> Curve:
    made = Curve({"energy": []})
    for step, value in enumerate(scores):
        made.add(step, float(step), Judgement({"energy": value}, {"energy": 1.0}, (), value))
    return made


def test_a_dead_head_is_never_the_best_step() -> None:
    made = curve([1.0, 0.5])
    assert made.improves(Judgement({}, {}, (), 0.4))
    assert not made.improves(Judgement({}, {}, ("energy",), 0.4))
    assert not made.improves(Judgement({}, {}, (), 0.6))
    assert not made.improves(Judgement({}, {}, (), math.nan))


def test_how_much_the_error_fell_at_the_end() -> None:
    # Eleven validations: the last fifth of the steps are those of 9 and 10.
    assert curve([1.0, *[0.5] * 8, 0.45, 0.4]).fell == pytest.approx(0.2)
    assert curve([1.0, 0.3, *[0.5] * 9]).fell == 0
    assert curve([1.0, 0.5]).fell is None
    assert curve([math.nan] * 11).fell is None


def test_curves_are_written_and_read() -> None:
    made, other = curve([1.0, 0.5, 0.25]), Curve({"energy": []})
    other.restore(made.to_json())
    assert other == made
    with pytest.raises(ValueError, match="a curve with steps"):
        other.restore('{"steps": []}')
