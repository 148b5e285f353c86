"""Trials of the papers' statements: random or exact instances, one function per statement, as evidence for the ledger.

A chapter calls a trial, shows what it returns and records it; the tests call the same functions at other sizes. The
mathematics is in `resid.theory`, nothing here is needed to use it.
"""
