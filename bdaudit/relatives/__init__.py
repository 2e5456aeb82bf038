"""Models made beside the original: stand-ins for innocent models, and surrogates."""
