"""Definitions of what may be pruned, one way of finding it per file."""
