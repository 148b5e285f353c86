# Everything runs in .venv, which the first target that needs it creates. `make help` explains the targets.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
READY := .venv/.ready
URL ?=
MINUTES ?=
AT_ONCE ?=
COMPUTE ?=
PARTS ?=
CHAPTER ?=
NAME ?=
TESTS ?= -m "not slow"

.DEFAULT_GOAL := help
.PHONY: help book test check check-all quick chapter mutations serve bench evidence experiments reduced readme repository clean distclean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter, TORCH=cpu or TORCH=cuda the build of PyTorch."

$(READY): pyproject.toml constraints.txt tools/bootstrap.py
	@$(PYTHON) tools/bootstrap.py
	@touch $@

book: $(READY)  ## execute what has changed and build the website in _build/html
	@$(RUN) tools.site

test: $(READY)  ## the tests of the library, the ledger, the notebooks' form and the project's files
	@$(RUN) pytest -q -n logical --maxprocesses 8 --dist worksteal $(TESTS)

check: $(READY)  ## what CI checks of a commit: lint, types, tests, notebooks, site, links, browser, some mutations
	@$(RUN) tools.check

check-all: $(READY)  ## everything, as once a week: also slow tests, all mutations, the site by a second builder
	@$(RUN) tools.check --all

quick: $(READY)  ## two minutes on the way: lint, types, the tests and chapters nearest to what changed
	@$(RUN) tools.quick

chapter: $(READY)  ## make chapter NAME=linear/foo: lay out notebook, check, test, claim and reference of a new chapter
	@$(RUN) tools.chapter $(NAME)

mutations: $(READY)  ## break the code on purpose and see tests and chapters fail
	@$(RUN) tests.mutations

serve: $(READY)  ## build the website and show it on http://127.0.0.1:8000 until interrupted
	@$(RUN) tools.site
	@$(RUN) http.server --bind 127.0.0.1 --directory _build/html 8000

bench: $(READY)  ## time the library beside its peers and write benchmarks/results
	@$(RUN) pip install -qq --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@$(RUN) benchmarks

evidence: $(READY)  ## run the chapters, or CHAPTER=linear/factor, in full and write their records to results/
	@$(RUN) tools.evidence $(CHAPTER)

experiments: $(READY)  ## the full trainings that are not on record, on a GPU, as far as MINUTES=60 allow
	@$(RUN) tools.experiments $(if $(MINUTES),--minutes $(MINUTES)) $(if $(AT_ONCE),--at-once $(AT_ONCE)) \
		--compute "$(COMPUTE)" $(PARTS) || [ $$? = 75 ]

reduced: $(READY)  ## the trainings at reduced scale that are not on record, on CPU cores, as far as MINUTES=60 allow
	@$(RUN) tools.experiments --reduced $(if $(MINUTES),--minutes $(MINUTES)) $(PARTS) || [ $$? = 75 ]

readme: $(READY)  ## bring the README's scoreboard and figure up to date
	@$(RUN) tools.readme

repository: $(READY)  ## make repository URL=https://github.com/owner/name: set the project's address everywhere
	@$(RUN) tools.repository $(URL)

clean:  ## remove everything built, but not .venv
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv as well
	rm -rf .venv
