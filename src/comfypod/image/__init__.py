"""From a lock to an image: recipe, text, build, proof."""
