"""Graphs of structures: neighbour lists, edge lists and batches."""

from eutectic.graph.graph import LISTS, Counts, Edges, Graph, StructureGraph, build_graph, build_graphs, collate
from eutectic.graph.reuse import ReusedNeighbours
from eutectic.graph.settings import GraphSettings

__all__ = [
    "LISTS",
    "Counts",
    "Edges",
    "Graph",
    "GraphSettings",
    "ReusedNeighbours",
    "StructureGraph",
    "build_graph",
    "build_graphs",
    "collate",
]
