"""The zoo: families of models whose truth is known."""
