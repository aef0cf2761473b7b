"""Validation of X and y, and the path of a batch to the network."""
