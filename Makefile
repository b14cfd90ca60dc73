# make quickstart   generate phantoms, prepare shards, pre-train a small M3AE, evaluate, write a report
# make test         lint and the whole test suite
# Both set up $(VENV) first: a virtual environment with the pinned packages (5.5 GB, 2-3 minutes).

VENV ?= .venv
PYTHON ?= python3
PHANTOMS ?= data/phantoms
BIN := $(VENV)/bin

.PHONY: quickstart test environment

environment: $(VENV)/.installed
	@$(BIN)/python -c "import m3ae, pathlib, sys; \
	  sys.exit(pathlib.Path(m3ae.__file__).parents[2] != pathlib.Path.cwd())" 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --no-deps --editable .

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, this is ' + sys.version.split()[0] \
	  if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

quickstart: environment
	$(BIN)/python data_prep/phantoms.py --out $(PHANTOMS)/raw --layouts roco
	$(BIN)/python data_prep/roco.py --raw $(PHANTOMS)/raw/roco --out $(PHANTOMS)/shards \
	  --px 144 --tokenizer train:400
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node 2 run_pretrain.py \
	  --config configs/pretrain/quickstart.yaml
	@echo "Open runs/quickstart/report.html"

test: environment
	$(BIN)/ruff check .
	$(BIN)/python -m pytest
