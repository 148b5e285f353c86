"""Rows of `make bench`: ours beside a peer in one run, as ratios, with memory."""
