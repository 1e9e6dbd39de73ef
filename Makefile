# Every target builds .venv by itself; nothing else has to be prepared.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check bench report tiny-vlm clean

demo: $(STAMP)  ## prune the tiny VLM and the full-size tower; writes demo-out/
	$(BIN)/infoprune demo

test: $(STAMP) check  ## everything that CI runs
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## the slow measurements behind the README's figures; writes benchmarks/results/
	@status=0; for script in $(filter-out %/report.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || status=1; done; exit $$status

report: $(STAMP)  ## write the README's tables from the result files of this machine
	$(BIN)/python benchmarks/report.py --machine $$($(BIN)/python -c 'from infoprune_rt.benchmarking.environment import machine_name; print(machine_name())')

tiny-vlm: $(STAMP)  ## train the shipped model again from its seed (about an hour on 2 cores)
	$(BIN)/python -m infoprune_rt.demo.tiny_training

clean:
	rm -rf .venv demo-out runs build dist *.egg-info

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@
