"""Score-based attacks: they see logits, but no gradients."""
