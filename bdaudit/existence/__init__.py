"""The backdoor existence coefficient (BEC)."""
