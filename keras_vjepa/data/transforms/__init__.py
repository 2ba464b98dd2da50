"""From frames to clips that a model takes."""
