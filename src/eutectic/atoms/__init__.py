"""Structures, properties, units and errors."""

from eutectic.atoms.errors import EutecticError, Interrupted, did_you_mean, suggest
from eutectic.atoms.properties import ENERGY, FORCES, PROPERTIES, STRESS, Property, define, parse_definition
from eutectic.atoms.structure import MAX_ATOMIC_NUMBER, LabelledStructure, Structure

__all__ = [
    "ENERGY",
    "FORCES",
    "MAX_ATOMIC_NUMBER",
    "PROPERTIES",
    "STRESS",
    "EutecticError",
    "Interrupted",
    "LabelledStructure",
    "Property",
    "Structure",
    "define",
    "did_you_mean",
    "parse_definition",
    "suggest",
]
