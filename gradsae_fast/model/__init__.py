"""The language model: load it, resolve a site, run it forward and backward."""
