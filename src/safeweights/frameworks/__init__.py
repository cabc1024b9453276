"""Where bytes become arrays: one adapter a framework, and everything else written once.

`adapter` says what a framework has to provide, `handle` is `safe_open`, `functions` the four
functions that each face (`safeweights.numpy`, `safeweights.torch` ...) offers.
"""
