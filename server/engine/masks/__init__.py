"""Which sub-layers a draft skips: the routing artifact on disk, and the router that picks a mask for a prompt."""
