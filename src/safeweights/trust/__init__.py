"""Whose weights these are: digests, signatures, policy, admission.

Decisions are pure functions of a policy and of evidence; reading, hashing and checking signatures
happen at the edge and produce that evidence. Nothing below this package imports it: a loader is
handed a verifying source, and knows no more.
"""
