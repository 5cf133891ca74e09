"""Analyses: read the graph, return facts, never change it."""
