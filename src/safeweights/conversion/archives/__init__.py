"""Zip and tar archives, read strictly: two readers that would disagree about a file refuse it."""
