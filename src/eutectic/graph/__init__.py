"""Structures as graphs."""

from eutectic.graph.graph import Edges, Graph, StructureGraph, build_graph, collate
from eutectic.graph.settings import GraphSettings

__all__ = ["Edges", "Graph", "GraphSettings", "StructureGraph", "build_graph", "collate"]
