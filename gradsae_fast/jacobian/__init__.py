"""The Jacobian between two dictionaries: how much an active latent below an MLP moves an active latent above it.

Source: Jacobian sparse autoencoders (Farnik et al., ICML 2025, arXiv 2502.18147).

    fit.py      whether each SAE belongs to its site, before there is a store
    path.py     the modules between the two sites, found and checked: each token by itself
    block.py    the k2 x k1 block of every token, by jvp or vjp through the model's own modules
    edges.py    sums over tokens of every pair of latents that meets
    store.py    segments on disk, written and read (no torch)
    ranking.py  which pairs are strongest, and on which tokens (no torch)
    extract.py  the straight line over a corpus
"""
