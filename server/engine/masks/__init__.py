"""Which sub-layers a draft skips: the routing artifact on disk, the router, and the sources of masks.

A new source is imported here, which registers it.
"""

from server.engine.masks.calibrated import FixedMask, MixedMask, NearestAnchor
from server.engine.masks.clasp import ClaspMask
from server.engine.masks.cosine import CosineMask
from server.engine.masks.early_exit import EarlyExit
from server.engine.masks.knapspec import KnapSpecMask
from server.engine.masks.swift import SwiftMask

__all__ = [
    "ClaspMask",
    "CosineMask",
    "EarlyExit",
    "FixedMask",
    "KnapSpecMask",
    "MixedMask",
    "NearestAnchor",
    "SwiftMask",
]
