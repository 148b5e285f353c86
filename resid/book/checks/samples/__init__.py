"""Checks of Part II: networks through finite samples."""
