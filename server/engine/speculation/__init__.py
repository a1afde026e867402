"""Drafting and verifying: who proposes tokens, which proposal is worth its price, how much of it is accepted."""
