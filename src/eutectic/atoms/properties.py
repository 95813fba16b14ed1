"""Physical properties of structures: level, rank, unit and extensivity.

They are declared explicitly, so that nothing is guessed from the shape of an array.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from eutectic.atoms import units
from eutectic.atoms.errors import EutecticError, did_you_mean

Level = Literal["structure", "atom"]

_DISPLAYED = {"eV": "meV", "eV/Å": "meV/Å", "eV/atom": "meV/atom"}
"""Library unit → unit in which errors are displayed; other units are displayed unchanged."""


@dataclass(frozen=True, kw_only=True)
class Property:
    """One physical quantity.

    Attributes:
        name: ASE's name if it has one.
        level: one value per structure, or one per atom.
        rank: 0 scalar, 1 vector (3,), 2 tensor (3, 3).
        unit: unit in the library and in every store.
        extensive: whether two distant copies of a structure have twice the value.
        categorical: whether values are classes 0, 1, …; a model then predicts their probabilities.
        symbol: symbol in tables and figures.
    """

    name: str
    level: Level
    unit: str
    rank: int = 0
    extensive: bool = False
    categorical: bool = False
    symbol: str = ""

    def shape(self, n_atoms: int) -> tuple[int, ...]:
        """Shape of one structure's value: (), (3,), (n_atoms,), (n_atoms, 3), …"""
        return ((n_atoms,) if self.level == "atom" else ()) + (3,) * self.rank

    @property
    def display_unit(self) -> str:
        """Unit in which errors are displayed: meV for eV, meV/Å for eV/Å, meV/atom for eV/atom, otherwise `unit`."""
        return _DISPLAYED.get(self.unit, self.unit)

    @property
    def display_factor(self) -> float:
        """Conversion factor from `unit` to `display_unit`."""
        return units.convert(self.unit, self.display_unit) if self.unit in _DISPLAYED else 1.0

    @property
    def display_unit_per_atom(self) -> str:
        """`display_unit` for errors divided by the number of atoms, if the property is extensive."""
        return f"{self.display_unit}/atom" if self.extensive and self.level == "structure" else self.display_unit

    @property
    def definition(self) -> str:
        """The definition in the format of `parse_definition`: "adsorption_energy=eV,extensive"."""
        rank = "class" if self.categorical else ("", "vector", "tensor")[self.rank]
        options = ("atom" if self.level == "atom" else "", rank, "extensive" if self.extensive else "")
        return f"{self.name}={','.join([self.unit, *filter(None, options)])}"

    def conversion(self, stated: str, where: str = "") -> units.Conversion:
        """Conversion from the unit in a file; a leading minus reverses the sign.

        Raises:
            EutecticError: an unknown unit, or a unit of another quantity.
        """
        where = where or f"--unit {self.name}={stated}"
        return units.conversion(stated, self.unit, extensive=self.extensive, where=where)

    def redefined(self, shape: tuple[int, ...], n_atoms: int) -> str:
        """Suggest a definition that fits a value whose shape is not `shape(n_atoms)`; empty for built-in properties and
        if no definition fits."""
        if self.name in BUILT_IN:
            return ""
        for level in get_args(Level):
            for rank in (0, 1, 2):
                extensive = self.extensive and level == "structure"
                other = replace(self, level=level, rank=rank, categorical=False, extensive=extensive)
                if other.shape(n_atoms) == shape:
                    return f"define it with this shape (--define {other.definition}), or name another entry with --key"
        return ""

    def to_dict(self) -> dict[str, object]:
        """JSON-serialisable dictionary, as saved in stores and models."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "property") -> Property:
        """The inverse of `to_dict`.

        Raises:
            EutecticError: an entry that is missing, unknown or of the wrong type.
        """
        known = {f.name: f for f in fields(cls)}
        kinds = {"rank": int, "extensive": bool, "categorical": bool}
        for name, value in values.items():
            if name not in known or type(value) is not kinds.get(name, str):
                raise EutecticError(
                    where, f"{name}: {value!r}", f"entries {', '.join(known)}", "write the file again, or repair it"
                )
        if missing := [name for name in ("name", "level", "unit") if name not in values]:
            raise EutecticError(where, f"no {missing[0]}", "name, level and unit", "write the file again, or repair it")
        return cls(**values)


ENERGY = Property(name="energy", level="structure", unit="eV", extensive=True, symbol="E")
FORCES = Property(name="forces", level="atom", rank=1, unit="eV/Å", symbol="F")
STRESS = Property(name="stress", level="structure", rank=2, unit="eV/Å³", symbol="σ")
"""Positive stress is tension, as in ASE."""

BUILT_IN: Mapping[str, Property] = {
    p.name: p
    for p in (
        ENERGY,
        FORCES,
        STRESS,
        Property(name="dipole_moment", level="structure", unit="D", symbol="µ"),
        Property(name="polarizability", level="structure", unit="a0³", extensive=True, symbol="α"),
        Property(name="homo", level="structure", unit="eV", symbol="ε_HOMO"),
        Property(name="lumo", level="structure", unit="eV", symbol="ε_LUMO"),
        Property(name="gap", level="structure", unit="eV", symbol="Δε"),
        Property(name="electronic_spatial_extent", level="structure", unit="a0²", symbol="⟨R²⟩"),
        Property(name="zpve", level="structure", unit="eV", extensive=True, symbol="ZPVE"),
        Property(name="u0", level="structure", unit="eV", extensive=True, symbol="U₀"),
        Property(name="u", level="structure", unit="eV", extensive=True, symbol="U"),
        Property(name="h", level="structure", unit="eV", extensive=True, symbol="H"),
        Property(name="g", level="structure", unit="eV", extensive=True, symbol="G"),
        Property(name="heat_capacity", level="structure", unit="cal/(mol K)", extensive=True, symbol="c_v"),
        Property(name="formation_energy", level="structure", unit="eV/atom", symbol="E_f"),
        Property(name="charge", level="structure", unit="e", extensive=True, symbol="Q"),
        Property(name="charges", level="atom", unit="e", symbol="q"),
        Property(name="dipole", level="structure", rank=1, unit="e Å", extensive=True, symbol="µ"),
        Property(name="band_gap", level="structure", unit="eV", symbol="E_gap"),
        Property(name="is_metal", level="structure", unit="", categorical=True, symbol="metal"),
        Property(name="cell_formation_energy", level="structure", unit="eV", extensive=True, symbol="E_f"),
        Property(name="exfoliation_energy", level="structure", unit="meV/atom", symbol="E_exf"),
        Property(name="last_phdos_peak", level="structure", unit="1/cm", symbol="ω_max"),
        Property(name="refractive_index", level="structure", unit="", symbol="n"),
        Property(name="log10_bulk_modulus", level="structure", unit="log₁₀ GPa", symbol="log K"),
        Property(name="log10_shear_modulus", level="structure", unit="log₁₀ GPa", symbol="log G"),
    )
}
"""Built-in properties."""

PROPERTIES: dict[str, Property] = dict(BUILT_IN)
"""All properties defined in this process, by name: built-in ones and user-defined ones (`define`)."""

_OF_STRUCTURES = (
    "id group n_atoms natoms content numbers atomic_numbers positions cell lattice pbc tags fixed structure cif name "
    "symbols info arrays"
)
"""Columns and entries of stores and structure files that are not labels."""

_OF_MODULES = (
    "T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double "
    "dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items "
    "keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook "
    "register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook "
    "register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty "
    "train training type update values xpu zero_grad"
)
"""Attributes of torch.nn.ModuleDict, in which a model keeps its heads by property name."""

RESERVED = frozenset({*_OF_STRUCTURES.split(), *_OF_MODULES.split()})
"""Names that no property may have."""

_OPTIONS = ("atom", "vector", "tensor", "class", "extensive")


def define(prop: Property, where: str = "") -> Property:
    """Define a property in this process.

    Stores, models and settings that use it include its definition and define it when they are opened.

    Args:
        prop: the unit may be any text; units known to `eutectic.atoms.units` are normalised to the library's spelling.
        where: location given in errors.

    Returns:
        The property defined under this name; the existing one if it was already defined.

    Raises:
        EutecticError: an invalid name; contradictory level, rank and extensivity; a different definition of the same
            name.
    """
    where = where or f"property {prop.name!r}"
    prop = replace(prop, unit=units.spelling(prop.unit))
    before = PROPERTIES.get(prop.name)
    if before is None:
        _check(prop, where)
        PROPERTIES[prop.name] = prop
        return prop
    # Symbols may differ; they are only used for display.
    if replace(prop, symbol=before.symbol) != before:
        built_in = prop.name in BUILT_IN
        raise EutecticError(
            where,
            f"the definition {prop.definition}",
            f"{before.definition}, the built-in definition"
            if built_in
            else f"{before.definition}, the earlier definition",
            "omit the definition, or give your property another name"
            + (
                "; use --unit to read a file in another unit"
                if built_in
                else f"; in a notebook, eutectic.atoms.PROPERTIES.pop({prop.name!r}) removes the old definition"
            ),
        )
    return before


def _check(prop: Property, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", prop.name):
        plain = re.sub(r"[^A-Za-z0-9]+", "_", prop.name).strip("_")
        raise EutecticError(
            where,
            f"the name {prop.name!r}",
            "letters, digits and underscores, with a letter first",
            f"rename it, for example to {plain if plain[:1].isalpha() else f'my_{plain}'.strip('_')!r}",
        )
    if prop.name in RESERVED:
        raise EutecticError(
            where,
            f"the name {prop.name!r}",
            "a name that is not reserved",
            f"rename it, for example to {f'my_{prop.name}'!r}",
        )
    contradictions = (
        (prop.level not in get_args(Level), f"level {prop.level!r}", "structure or atom"),
        (prop.rank not in (0, 1, 2), f"rank {prop.rank}", "0 (scalar), 1 (vector) or 2 (tensor)"),
        (prop.categorical and prop.rank > 0, "classes that are vectors or tensors", "one class"),
        (prop.categorical and prop.extensive, "classes that are extensive", "classes, which do not add up"),
        (prop.categorical and prop.unit, f"classes in {prop.unit}", "classes 0, 1, …, which have no unit"),
        (prop.extensive and prop.level == "atom", "extensive values of atoms", "extensive only for structures"),
    )
    for wrong, given, expected in contradictions:
        if wrong:
            raise EutecticError(where, str(given), expected, "correct the definition")


def parse_definition(text: str) -> Property:
    """Parse a property from `NAME=UNIT[,atom][,vector|tensor|class][,extensive]`, without defining it (see `define`).

    Examples: "adsorption_energy=eV,extensive"; "magnetic_moments=µB,atom"; "is_stable=,class" (classes have no unit).

    Raises:
        EutecticError: another format, or an unknown option.
    """
    where = f"--define {text}"
    name, equals, rest = text.partition("=")
    unit, *options = (part.strip() for part in rest.split(","))
    form = "NAME=UNIT[,atom][,vector|tensor|class][,extensive]"
    if not equals:
        raise EutecticError(where, "no unit", form, f"write {name.strip()}=UNIT, or {name.strip()}= if it has none")
    for option in options:
        if option not in _OPTIONS:
            raise EutecticError(
                where,
                f"the option {option!r}",
                f"options {', '.join(_OPTIONS)}",
                did_you_mean(option, _OPTIONS, f"write {form}"),
            )
    if unit in _OPTIONS:
        raise EutecticError(
            where,
            f"the option {unit!r} in place of the unit",
            form,
            f"write {name.strip()}=,{','.join([unit, *options])} if it has no unit",
        )
    ranks = [option for option in ("vector", "tensor", "class") if option in options]
    if len(ranks) > 1:
        raise EutecticError(where, " and ".join(ranks), "one of vector, tensor and class", "keep only one")
    prop = Property(
        name=name.strip(),
        level="atom" if "atom" in options else "structure",
        unit=units.spelling(unit),
        rank={"vector": 1, "tensor": 2}.get("".join(ranks), 0),
        extensive="extensive" in options,
        categorical="class" in options,
    )
    if prop.name not in BUILT_IN:
        _check(prop, where)
    return prop


def define_all(definitions: Iterable[str]) -> tuple[Property, ...]:
    """Parse and define several properties.

    Raises:
        EutecticError: as for `parse_definition` and `define`.
    """
    return tuple(define(parse_definition(text), f"--define {text}") for text in definitions)
