"""Models: what is wanted, where it belongs, what is there already, and what has to be fetched."""
