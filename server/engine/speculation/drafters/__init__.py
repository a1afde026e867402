"""The drafters, a file each; a new one is imported here, which registers it."""

from server.engine.speculation.drafters.lookup import LookupDrafter
from server.engine.speculation.drafters.low_bit import LowBitDrafter
from server.engine.speculation.drafters.recycling import RecyclingDrafter
from server.engine.speculation.drafters.skip import SkipDrafter
from server.engine.speculation.drafters.suffix import SuffixDrafter

__all__ = ["LookupDrafter", "LowBitDrafter", "RecyclingDrafter", "SkipDrafter", "SuffixDrafter"]
