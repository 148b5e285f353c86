"""Mutations: the code is broken on purpose, and both the tests and the chapter must notice."""
