# Each target makes what it needs, from nothing: `make demo`, then `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
APART := --numprocesses 2 --dist loadfile

.PHONY: demo test oldest check slow bench docs clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest $(APART)

# the Hugging Face models again, with the oldest transformers that pyproject.toml allows
oldest: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/oldest transformers==5.19.0
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest tests/test_shorten.py tests/test_shorten_errors.py tests/test_shorten_traps.py tests/test_shorten_wrapped.py tests/test_families.py tests/test_encoder.py tests/test_inside.py tests/test_ask.py tests/test_tiled.py tests/test_shorten_relevance.py $(APART)

slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/python -m regard.bench.speed
	$(BIN)/python -m regard.bench.selectors
	$(BIN)/python -m regard.bench.shorten
	$(BIN)/python -m regard.bench.relevance
	$(BIN)/regard bench allocators
	$(BIN)/regard bench layers
	$(BIN)/python -m regard.bench.tasks.mosaic
	$(BIN)/python -m regard.bench.capture
	$(BIN)/python -m regard.bench.app
	$(BIN)/regard bench matrix
	$(BIN)/regard claims --run
	$(MAKE) docs

# what the documents show of results/ and of the code
docs: $(READY)
	$(BIN)/python -m regard.bench.readme
	$(BIN)/python -m regard.bench.claims
	$(BIN)/python -m regard.bench.advise
	$(BIN)/python -m regard.reference

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "regard needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[embedded,hf,plot,train,app,dev]"
	@touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis demo
