"""How good it is: frozen features, probes on them, and what they score."""
