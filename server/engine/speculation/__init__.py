"""Drafting and verifying: who proposes tokens, which proposal is worth its price, how much of it is accepted."""

# The import fills the registry.
from server.engine.speculation import drafters

__all__ = ["drafters"]
