"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
ASSETS = BUILD / "assets"
EXECUTED = BUILD / "executed"
RECORDS = BUILD / "records"
STAGE = BUILD / "stage"
SITE = BUILD / "html"
