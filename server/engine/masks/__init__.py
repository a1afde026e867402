"""Which sub-layers a draft skips: the routing artifact on disk, the router, and the sources of masks.

A new source is imported here, which registers it.
"""

from server.engine.masks.calibrated import MixedMask, NearestAnchor

__all__ = ["MixedMask", "NearestAnchor"]
