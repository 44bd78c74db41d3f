"""autoprune searches for pruning schemes of PyTorch networks."""
