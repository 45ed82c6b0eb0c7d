# Everything lives in .venv; the stamp makes set-up run once per change of what is installed.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NAME ?= tutorial
SCHEDULES ?= 200
SEED ?= 0

.PHONY: demo test lint bench confidence chaos fuzz clean

demo: $(STAMP)
	$(BIN)/homoalign demo demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 4 --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/chaos.py --schedules $(SCHEDULES) --seed $(SEED)

bench: $(STAMP)
	$(BIN)/homoalign bench $(NAME)

# What `confidence` is made of, fitted anew: about twenty minutes.
confidence: $(STAMP)
	mkdir -p build
	$(BIN)/homoalign bench trust --split fit --seed 1 --size 240 --pairs 240 --unrelated 60 --near-duplicates 60 \
		--misled 440 --no-peers --num-workers 2 --json build/trust_fit.json
	$(BIN)/python -m jobs.bench.fit_confidence build/trust_fit.json

# Mutated files through decoders and job, then manifests with anything in their cells: about twenty minutes.
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/fuzz.py --inputs 20000
	OMP_NUM_THREADS=1 FUZZ_EXAMPLES=3000 $(BIN)/python -m pytest tests/test_fuzz.py -k cells

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c "import homoalign; homoalign.warm_up()"  # compiled once, before tests that keep time
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist
