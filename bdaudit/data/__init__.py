"""Clean labelled samples: read, digest, split."""
