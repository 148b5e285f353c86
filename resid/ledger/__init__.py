"""Claims of the papers, evidence from runs, and the verdicts that follow.

`claims/` holds every statement, table row, figure and headline number; a notebook calls `record` for each claim it
tests; `verdicts` and `scoreboard` are computed from the record files and from nothing else.
"""

from resid.ledger.catalog import Claim, claims, get_claim, papers
from resid.ledger.errors import ClaimFailed, LedgerError, RecordError, UnknownClaimError
from resid.ledger.evidence import Cases, Counterexample, Evidence, Seeds, Symbolic
from resid.ledger.judge import UNSETTLED, VERDICTS, Verdict, results_folder, verdicts
from resid.ledger.run import Run, finish_run, record, records_folder, start_run
from resid.ledger.store import Record, read_record, read_records
from resid.ledger.tables import retest_summary, scoreboard, summary

__all__ = [
    "UNSETTLED",
    "VERDICTS",
    "Cases",
    "Claim",
    "ClaimFailed",
    "Counterexample",
    "Evidence",
    "LedgerError",
    "Record",
    "RecordError",
    "Run",
    "Seeds",
    "Symbolic",
    "UnknownClaimError",
    "Verdict",
    "claims",
    "finish_run",
    "get_claim",
    "papers",
    "read_record",
    "read_records",
    "record",
    "records_folder",
    "results_folder",
    "retest_summary",
    "scoreboard",
    "start_run",
    "summary",
    "verdicts",
]
