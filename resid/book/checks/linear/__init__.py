"""Checks of Part I: deep linear networks, their landscape, shortcut networks."""
