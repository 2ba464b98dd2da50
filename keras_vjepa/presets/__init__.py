"""Read, write, fetch and upload presets, which are folders that hold a model."""
