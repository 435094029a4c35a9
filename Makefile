# make demo | make test | make check | make bench | make readme; each creates .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: demo test check bench readme clean

demo: .venv/.runtime
	$(RUN) prepare_dataset.py
	$(RUN) train_model.py
	$(RUN) evaluate_model.py
	$(RUN) attack.py
	$(RUN) certify.py
	@echo
	@echo "models   data/models     one .pt per trained model"
	@echo "plots    data/plots      training curves, confusion matrices, accuracy against eps, certified accuracy"
	@echo "tables   data/results    rows.csv, summary tables (.csv, .md), manifest.json"
	@echo "wavs     data/results/attack/wavs   original, adversarial and perturbation-only; listen to them"

test: .venv/.dev
	$(RUN) -m pytest

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev
	$(RUN) benchmarks/run.py

readme: .venv/.dev
	$(RUN) tools/readme.py

.venv/.runtime: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv
