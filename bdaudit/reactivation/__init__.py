"""Attacks that try to wake a dormant backdoor."""
