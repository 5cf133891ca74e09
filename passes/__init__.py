"""Passes: one file each, found by walking this package; analyses read the graph, rewrites change it."""
