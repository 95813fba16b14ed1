"""What a structure is: atoms, properties, units, errors."""

from eutectic.atoms.errors import EutecticError, Interrupted
from eutectic.atoms.properties import ENERGY, FORCES, PROPERTIES, STRESS, Property, define, parse_definition
from eutectic.atoms.structure import LabelledStructure, Structure

__all__ = [
    "ENERGY",
    "FORCES",
    "PROPERTIES",
    "STRESS",
    "EutecticError",
    "Interrupted",
    "LabelledStructure",
    "Property",
    "Structure",
    "define",
    "parse_definition",
]
