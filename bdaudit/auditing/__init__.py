"""The public verbs: from paths or objects in memory to a record."""
