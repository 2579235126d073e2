"""What the manifest means exactly: every item by digest, in one byte-stable file."""
