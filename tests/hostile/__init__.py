"""Hostile and broken inputs, made from seeds, and what each must give."""
