"""Checkpoints that many processes wrote: the whole tensors, assembled from their parts, unread.

Every reader here gives the same mapping as a reader of one file. `finding` says which reader a folder
needs; `assembling` proves that the parts make up each tensor before any of it is read.
"""
