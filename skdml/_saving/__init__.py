"""Folders, pickles and exports of fitted embedders."""
