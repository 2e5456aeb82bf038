"""Reports, each made from a record alone."""
