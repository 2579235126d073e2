"""Python packages that a volume adds to an image: a layered environment, and what may not be replaced in it."""
