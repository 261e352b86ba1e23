"""A corpus from its files to batches of token windows: read, tokenise, plan, cut, batch. No torch here.

read.open_corpus -> plan.make_plan -> segments.read_segments -> windows.cut_windows -> windows.batch_windows
"""
