"""What is audited: sources parsed once, opened once, and the settings they are run with."""
