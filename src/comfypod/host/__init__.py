"""The pod without a container: a store of prepared things, and the programs that use it."""
