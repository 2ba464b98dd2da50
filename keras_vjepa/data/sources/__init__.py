"""From what people have to samples."""
