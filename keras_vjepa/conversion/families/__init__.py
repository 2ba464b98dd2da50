"""Weights of the encoders that V-JEPA is compared with (Tables 5 and 6; App. D.1)."""
