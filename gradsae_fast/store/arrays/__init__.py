"""Zarr arrays of a store: how they are written, and how they are read in pieces."""
