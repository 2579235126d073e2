"""What lives on the volume. Standard library only: boot runs from here."""
