"""Properties: how they are shown, and those of the user's own."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eutectic.atoms import (
    PROPERTIES,
    EutecticError,
    LabelledStructure,
    Property,
    Structure,
    define,
    parse_definition,
)
from eutectic.atoms.properties import BUILT_IN, RESERVED, define_all


def test_units_in_which_errors_are_shown() -> None:
    shown = {p.name: (p.display_unit, p.display_factor, p.display_unit_per_atom) for p in PROPERTIES.values()}
    assert shown["energy"] == ("meV", 1000.0, "meV/atom")
    assert shown["forces"] == ("meV/Å", 1000.0, "meV/Å")
    assert shown["formation_energy"] == ("meV/atom", 1000.0, "meV/atom")
    assert shown["exfoliation_energy"] == ("meV/atom", 1.0, "meV/atom")
    assert shown["stress"] == ("eV/Å³", 1.0, "eV/Å³")
    assert shown["dipole_moment"] == ("D", 1.0, "D")
    assert shown["is_metal"] == ("", 1.0, "")


@pytest.mark.parametrize(
    ("text", "prop"),
    [
        ("adsorption_energy=eV", Property(name="adsorption_energy", level="structure", unit="eV")),
        ("e_bind=eV,extensive", Property(name="e_bind", level="structure", unit="eV", extensive=True)),
        ("born = e , atom, tensor", Property(name="born", level="atom", rank=2, unit="e")),
        ("moment=µB,vector", Property(name="moment", level="structure", rank=1, unit="µB")),
        ("field=ev/angstrom,atom,vector", Property(name="field", level="atom", rank=1, unit="eV/Å")),
        ("phase=,class", Property(name="phase", level="structure", unit="", categorical=True)),
        ("site=,atom,class", Property(name="site", level="atom", unit="", categorical=True)),
        ("ratio=", Property(name="ratio", level="structure", unit="")),
    ],
)
def test_definitions(text: str, prop: Property) -> None:
    assert parse_definition(text) == prop
    assert parse_definition(prop.definition) == prop
    assert Property.from_dict(json.loads(json.dumps(prop.to_dict()))) == prop


def test_built_in_definitions_come_back() -> None:
    for prop in BUILT_IN.values():
        assert replace(parse_definition(prop.definition), symbol=prop.symbol) == prop
        assert define(parse_definition(prop.definition)) is prop


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gap2", "no unit; expected NAME=UNIT.*write gap2=UNIT"),
        ("x=eV,atm", "the option 'atm'.*did you mean 'atom'"),
        ("x=eV,vector,tensor", "vector and tensor; expected one of"),
        ("x=,class,vector", "vector and class; expected one of"),
        ("phase=class", "in place of the unit.*write phase=,class"),
        ("phase=eV,class", "classes in eV"),
        ("phase=,class,extensive", "classes that are extensive"),
        ("q=e,atom,extensive", "extensive values of atoms"),
        ("E ads=eV", "the name 'E ads'.*rename it, for example to 'E_ads'"),
        ("2nd=eV", "the name '2nd'.*rename it, for example to 'my_2nd'"),
        ("=eV", "the name ''.*rename it, for example to 'my'"),
        ("positions=Å", "the name 'positions'.*rename it, for example to 'my_positions'"),
        ("double=eV", "the name 'double'"),
    ],
)
def test_definitions_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(EutecticError, match=message) as caught:
        define_all([text])
    assert caught.value.where == f"--define {text}"


def test_once_defined() -> None:
    first = define(parse_definition("e_bind=ev,extensive"))
    assert PROPERTIES["e_bind"] is first
    assert define(parse_definition("e_bind=eV,extensive")) is first
    assert define(replace(first, symbol="E_b")) is first
    with pytest.raises(
        EutecticError, match="definition e_bind=eV; expected e_bind=eV,extensive, the earlier definition"
    ):
        define(parse_definition("e_bind=eV"))
    with pytest.raises(EutecticError, match=r"energy=eV,extensive, the built-in definition.*--unit"):
        define(parse_definition("energy=kcal/mol,extensive"))
    assert PROPERTIES["e_bind"] is first


def test_properties_end_with_a_test() -> None:
    assert PROPERTIES == BUILT_IN


@pytest.mark.parametrize("values", [{"name": "x"}, {"name": "x", "level": "atom", "unit": 1}, {"nam": "x"}])
def test_json_that_is_no_property(values: dict[str, object]) -> None:
    with pytest.raises(EutecticError, match=r"my\.json"):
        Property.from_dict(values, "my.json")


def test_heads_can_have_the_name_of_any_property() -> None:
    heads = torch.nn.ModuleDict()
    assert {name for name in dir(heads) if not name.startswith("_")} <= RESERVED
    for name in BUILT_IN:
        heads[name] = torch.nn.Identity()


def labelled(name: str, value: object) -> LabelledStructure:
    structure = Structure(numbers=np.array([6, 8]), positions=np.array([[0.0, 0, 0], [0, 0, 1.1]]))
    return LabelledStructure(structure=structure, labels={name: np.asarray(value, dtype=float)}, id="1", group="CO")


def test_labels_of_ones_own_are_checked() -> None:
    define_all(["e_bind=eV,extensive", "phase=,class", "site=,atom,class"])
    for name, value in (("e_bind", 1.5), ("phase", 0), ("phase", 12), ("site", [0, 3])):
        labelled(name, value).check("here")
    for name, value, message in (
        ("e_bind", [1, 2, 3], r"e_bind of shape \(3,\); expected shape \(\); .*--define e_bind=eV,vector,extensive"),
        ("e_bind", [1, 2], r"shape \(2,\).*--define e_bind=eV,atom\)"),
        ("e_bind", [1, 2, 3, 4], "check that the labels belong to these atoms"),
        ("e_bind", np.nan, "not finite"),
        ("phase", 0.5, r"phase \[0.5\]; expected a class: one of the integers"),
        ("phase", -1, "expected a class"),
        ("site", [0, 0.1], "expected a class"),
        ("e_bond", 1.0, "label 'e_bond'.*--define"),
    ):
        with pytest.raises(EutecticError, match=message):
            labelled(name, value).check("here")
