"""What the user wrote, and the profiles that give it meaning."""
