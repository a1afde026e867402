"""From prompts to a routing artifact, in stages."""
