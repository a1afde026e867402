"""From logits to tokens: adjustments, grammars, the distribution, the draw."""
