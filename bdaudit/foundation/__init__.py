"""What everything stands on: progress, statistics, files, digests, plain text; no models."""
