"""The pruning task as a Gymnasium environment: still empty.

The Gymnasium environment will live here. An episode walks over the groups of a search space, one action
per group says what is kept, and only the complete scheme earns a reward; so the environment needs the
space and its costs, and no model. It installs as ``autoprune.envs`` and imports the core; the core never
imports it and reaches it by name.
"""
