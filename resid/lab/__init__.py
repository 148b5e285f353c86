"""Experiments: data, and what is measured on it."""
