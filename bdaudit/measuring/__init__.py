"""The steps of an audit, each on things that are already open."""
