"""Measure the replicator against what its engines allow and against what people write by hand: ``python -m ops.bench``.

Rivals run side by side in one run, alternating, each in a process of its own; what counts is the ratio of medians.
"""
