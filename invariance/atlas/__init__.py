"""The atlas: every measure under every kind of function-preserving map, and why.

>>> import invariance as inv
>>> cell = inv.atlas.build()["fisher_rao_norm"].cell("neuron_scaling")
>>> cell.declared, cell.proof
('invariant', 'symbolic')
"""

from invariance.atlas._atlas import Atlas, build
from invariance.atlas._board import derivation
from invariance.atlas._cells import AtlasError, Cell, Entry
from invariance.atlas._explain import explain
from invariance.atlas._pages import to_html, to_latex, to_markdown

__all__ = [
    "Atlas",
    "AtlasError",
    "Cell",
    "Entry",
    "build",
    "derivation",
    "explain",
    "to_html",
    "to_latex",
    "to_markdown",
]
