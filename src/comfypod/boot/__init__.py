"""Inside the pod. Standard library only: nothing a custom node installs can break it."""
