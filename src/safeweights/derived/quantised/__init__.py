"""Quantised weights read as numbers: a mapping with packed tensors and scales -> a mapping without.

`schemes` finds the quantised weights of a checkpoint by their names, types and settings; each scheme has
a module with its names, its formula and its source; `weight` computes a tensor tile by tile.
docs/quantised.md has a table of all schemes. Must not know: containers of files, frameworks.
"""
