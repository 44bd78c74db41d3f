"""A searcher, a criterion, a recovery, a reward, an exporter and a search space of one's own, one per file.

Each is a function, and ``pyproject.toml`` gives it a name. Keyword arguments with a default are its options.
"""
