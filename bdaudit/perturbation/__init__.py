"""Universal perturbations: norm balls, initialisation, losses."""
