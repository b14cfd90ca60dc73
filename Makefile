# make quickstart   generate phantoms, prepare shards, pre-train a small M3AE, fine-tune it and its
#                   initial weights on phantom questions, write a report
# make tables-small phantoms, then the paper's Table 4 and Figure 2 on them, three seeds (an hour and a half on two cores)
# make test         lint and the whole test suite; hides GPUs
# make test-long    what takes longer: compilation, two hosts (network namespaces, as root), a file of 2 GiB, ONNX,
#                   and new examples for every property test
# make test-faults  kills, signals, full disks, hostile and damaged files, all tries (as root, some 22 minutes on two cores)
# make test-gpu     what only a GPU can show
# make bench        the optimisations one by one, measured on this machine (GPU or CPU), and the roofline
# make results      the tables of docs/results that rest on predictions, from the kept files
# make page         a page to ask a picture, on the quickstart's model (trained first where it is not there)
# make test-page    that page in a headless Chromium: upload, ask, rank, refuse, two users at once
# All set up $(VENV) first: a virtual environment with the pinned packages (5.5 GB, 2-4 minutes).

VENV ?= .venv
PYTHON ?= python3
PHANTOMS ?= data/phantoms
# Gradio asks for an older Pillow than is pinned, so it stands in an environment of its own, which
# lends everything else from $(VENV).
PAGE ?= .venv-page
BIN := $(VENV)/bin
# Tests side by side, one a core.
SIDE_BY_SIDE = -n auto --maxprocesses 4
FINETUNE = OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node 2 run_finetune.py \
  --config configs/finetune/quickstart.yaml
TABLE = $(BIN)/python data_prep/table.py --raw data/tables/raw/tables/images --px 96 --tokenizer data/tables/pairs/tokenizer

.PHONY: quickstart tables-small test test-long test-faults test-gpu bench results page test-page environment

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
	$(BIN)/python data_prep/phantoms.py --out $(PHANTOMS)/raw --layouts roco vqa_rad --vqa 280
	$(BIN)/python data_prep/roco.py --raw $(PHANTOMS)/raw/roco --out $(PHANTOMS)/shards \
	  --px 144 --tokenizer train:400
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node 2 run_pretrain.py \
	  --config configs/pretrain/quickstart.yaml
	$(BIN)/python data_prep/vqa_rad.py --raw $(PHANTOMS)/raw/vqa_rad --out $(PHANTOMS)/questions \
	  --px 144 --tokenizer $(PHANTOMS)/shards/tokenizer
	$(FINETUNE) init=runs/quickstart
	$(FINETUNE) architecture=runs/quickstart/config.yaml output=runs/quickstart_scratch
	$(FINETUNE) architecture=runs/quickstart/config.yaml output=runs/quickstart_scratch_longer train.epochs=33
	$(BIN)/python -m m3ae.score runs/quickstart_vqa/predictions-image_disjoint.jsonl \
	  --against runs/quickstart_scratch/predictions-image_disjoint.jsonl \
	  --arm steps=runs/quickstart_scratch_longer/predictions-image_disjoint.jsonl \
	  --train $(PHANTOMS)/questions/train --protocol image_disjoint --json runs/quickstart/fine_tuning.json
	$(BIN)/python -m m3ae.reports.pretraining runs/quickstart
	@echo "Open runs/quickstart/report.html, and runs/quickstart_vqa/report.html; or: make page"

tables-small: environment
	$(BIN)/python data_prep/phantoms.py --out data/tables/raw --layouts roco tables --tables 2000
	$(BIN)/python data_prep/roco.py --raw data/tables/raw/roco --out data/tables/pairs --px 96 --tokenizer train:400
	$(TABLE) --table data/tables/raw/tables/questions.csv --out data/tables/questions
	$(BIN)/python run_tables.py --size small --tables 4 fig2 --jobs 2
	@echo "Open runs/tables/index.html"

test: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-long: environment
	$(BIN)/python -m pytest tests/long
	M3AE_RANDOM=1 $(BIN)/python -m pytest -m hypothesis $(SIDE_BY_SIDE)

test-faults: environment
	rm -f runs/faults.jsonl
	$(BIN)/python -m pytest tests/faults $(SIDE_BY_SIDE) --dist worksteal

test-gpu: environment
	M3AE_TEST_DEVICE=$${M3AE_TEST_DEVICE:-cuda} $(BIN)/python -m pytest tests/on_gpu

bench: environment
	mkdir -p runs/bench
	$(BIN)/python benchmarks/ladder.py --json runs/bench/ladder.json | tee runs/bench/ladder.md
	$(BIN)/python benchmarks/roofline.py --json runs/bench/roofline.json | tee runs/bench/roofline.md

results: environment
	$(BIN)/python benchmarks/results.py

$(PAGE)/.installed: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m venv $(PAGE)
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > $$(echo $(PAGE)/lib/python*/site-packages)/lent.pth
	$(PAGE)/bin/python -m pip install --quiet --editable ".[page,test-page]"
	touch $@

page: environment $(PAGE)/.installed
	test -d runs/quickstart_vqa/best-image_disjoint || $(MAKE) quickstart
	$(PAGE)/bin/python -m m3ae.serve --model runs/quickstart_vqa --rank-with runs/quickstart \
	  --images "$(PHANTOMS)/raw/vqa_rad/VQA_RAD Image Folder" --open

test-page: environment $(PAGE)/.installed
	test -n "$$(command -v chromium || command -v chromium-browser)" \
	  || $(PAGE)/bin/python -m playwright install chromium
	$(PAGE)/bin/python -m pytest tests/page
