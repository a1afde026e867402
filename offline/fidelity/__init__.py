"""The same model at several numbers of bits: what each costs in fidelity, and what it gives in speed."""
