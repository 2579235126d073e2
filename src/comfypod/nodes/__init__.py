"""Custom nodes: declared, fetched, installed and checked, each as a transaction."""
