"""Open checkpoints safely and make them classifiers."""
