"""Named errors of the ledger."""


class LedgerError(ValueError):
    """Something in the ledger is not as it must be; the text names the claim or the file and what is wrong."""


class UnknownClaimError(LedgerError):
    """No claim of that id stands in the ledger."""


class RecordError(LedgerError):
    """A record file is corrupt, incomplete, altered or of another schema."""


class ClaimFailed(LedgerError):
    """The evidence contradicts what the claim demands; a notebook stops here and papermill exits non-zero."""
