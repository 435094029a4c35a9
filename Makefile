# make demo | make test | make check | make bench | make docs | make study CONFIG=experiments/x.ini ARGS="--set ...";
# each creates .venv first; the same command resumes an interrupted run. ARGS goes to every script of the study.
PYTHON ?= python3
CONFIG ?= config.ini
ARGS ?=
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: demo study test check bench docs clean

demo: study
	@echo
	@echo "models   data/models     one .pt per trained model"
	@echo "plots    data/plots      training curves, confusion matrices, accuracy against eps, certified accuracy"
	@echo "tables   data/results    rows.csv, summary tables (.csv, .md), manifest.json"
	@echo "wavs     data/results/attack/wavs   original, adversarial and perturbation-only; listen to them"

study: .venv/.runtime
	$(RUN) prepare_dataset.py --config $(CONFIG) $(ARGS)
	$(RUN) train_model.py --config $(CONFIG) $(ARGS)
	$(if $(shell grep -s '^\[SPEAKER\]' $(CONFIG)),$(RUN) enroll_speakers.py --config $(CONFIG) $(ARGS))
	$(RUN) evaluate_model.py --config $(CONFIG) $(ARGS)
	$(RUN) attack.py --config $(CONFIG) $(ARGS)
	$(RUN) certify.py --config $(CONFIG) $(ARGS)

# Two processes of one thread each, a file of tests at a time.
test: .venv/.dev
	EARSHOT_THREADS=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev
	$(RUN) benchmarks/run.py

docs: .venv/.dev
	$(RUN) tools/docs.py

.venv/.runtime: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	# torchattacks declares torchvision, which it does not need here and which has no matching light build.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1
	touch $@

clean:
	rm -rf .venv
