"""Hold all code that depends on the engine that runs: torch, JAX or TensorFlow."""
