"""Whether it learns."""
