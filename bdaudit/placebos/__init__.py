"""Placebo triggers: patterns as strong as the true trigger that nobody trained a model on."""
