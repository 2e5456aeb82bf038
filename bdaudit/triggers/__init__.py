"""Triggers: stamped on images, read from and written to files."""
