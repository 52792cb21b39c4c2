# make setup | demo | claims | test | lint | docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
STAMP := $(VENV)/.installed
CUDA_VENV := .venv-cuda
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

export DS_ACCELERATOR ?= cpu
export TOKENIZERS_PARALLELISM = false

# The authors of the site's theme announce another program at every build.
export NO_MKDOCS_2_WARNING = 1

.PHONY: setup demo claims test test-slow test-exhaustive test-null-gpu lint docs clean

setup: $(STAMP)

# torch first: DeepSpeed's build looks at it. Then all pinned packages as they are, since the search for
# versions that fit takes longer than to install them; and what this Python needs besides. uv
# needs a quarter of pip's processor time, but does not know pip's settings, such as a mirror: then pip does it.
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
UV := UV_NATIVE_TLS=true $(BIN)/uv pip install --quiet --python $(BIN)/python
PINNED := --no-deps --no-build-isolation --requirement constraints.txt
OURSELVES := --constraint constraints.txt --no-build-isolation --editable '.[dev]'

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools>=77' wheel packaging torch uv
	$(UV) $(PINNED) || $(PIP) $(PINNED)
	$(UV) $(OURSELVES) || $(PIP) $(OURSELVES)
	touch $@

demo: setup
	$(BIN)/janus-pt demo --output $(DEMO) $(DEMO_FLAGS)

claims: setup
	$(BIN)/janus-pt claims $(CLAIMS_FLAGS)

test: setup
	$(BIN)/python -m pytest -q --numprocesses 2 --durations 25

# One process more than CI has cores: many of these tests wait, for servers and time-outs.
test-slow: setup
	$(BIN)/python -m pytest -q -m "slow and not exhaustive" --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 25

# Before a release: what CI's time does not allow.
test-exhaustive: setup
	$(BIN)/python -m pytest -q -m exhaustive --numprocesses 2 --dist loadfile

# Needs 5 GB for the CUDA build of torch, gcc, and no GPU.
test-null-gpu: $(CUDA_VENV)/.installed
	$(BIN)/python -m pytest -q -m null_gpu --timeout 3600

# `===`: without it pip would take a build for CPUs, if an index has one. All other packages are those
# of the first environment; what is installed here comes before them.
$(CUDA_VENV)/.installed: $(STAMP)
	test -x $(CUDA_VENV)/bin/python || $(BIN)/python -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet 'torch===$(TORCH_VERSION)'
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(CUDA_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/rest.pth
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: setup
	$(BIN)/mkdocs build

clean:
	rm -rf $(DEMO) runs site
