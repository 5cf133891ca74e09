"""Rewrites: change the graph, return how many changes they made."""
