"""From a record and a policy to a verdict."""
