"""Who scores which segments of a run: this process alone, workers that a launcher started, or those of a Ray cluster.

Every engine puts the same three steps of `line` together: begin a store, score some of its segments, finish it. A
segment is a pure function of the plan, its number and the configuration, and is committed once whoever writes it, so a
store has the same bytes whichever engines made it, and one may go on where another stopped.
"""
