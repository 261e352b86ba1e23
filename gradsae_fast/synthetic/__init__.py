"""Synthetic activations: does a model take a sum of latents for one of its own hidden states?

Source: Evaluating synthetic activations composed of SAE latents (Giglemiani et al., arXiv 2409.15019). A hidden state
is moved in steps towards a target, and the output's distance from where it was is read at every step. Near a real
hidden state the curve is flat (a plateau), then it rises (the blow-up); the steepest step tells kinds of targets apart.

    subject.py      model, SAE and texts of a store
    latent_sets.py  the latent sets that a store holds, and sets drawn from their statistics (no torch)
    targets.py      activations to move to: real ones, and four kinds of made ones
    sweep.py        many steps of many paths in one pass, from the site upward
    curves.py       steepest steps, plateaus, tables (no torch)
    plot.py         the mean curves as SVG (no torch)
    experiment.py   the straight line, from a store to tables and a plot
"""
