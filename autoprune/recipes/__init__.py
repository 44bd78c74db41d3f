"""Recipes train the network as a part of the search: still empty.

A recipe is a train-time system, one per file: slimmable networks, prunable nets, Frank-Wolfe, dynamic
sparse training, lottery tickets will live here. A recipe may start runs, because it trains a network and
then searches; a searcher may not.
"""
