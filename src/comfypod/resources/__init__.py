"""Data that ships with comfypod: the profile table, the default manifest and its lock."""
