"""Slow, obviously right versions that fast routines are compared with."""
