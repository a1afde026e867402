"""How many replicas a rate of requests needs: a simulation from measured costs of a step, and its picture."""
