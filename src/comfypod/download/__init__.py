"""The download door: large files in parts, resumed, checked and published at once."""
