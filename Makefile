# Two commands set up everything, each in a virtual environment of its own: `make demo` (slim, no torch) and `make test`.
PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv
# The newest torch that pyproject.toml allows; TORCH=path/or/url picks another build, such as a CPU-only wheel.
TORCH ?= torch==2.13.0

# The tests inside others' tools, each in an environment of its own: tests/tools has a folder for each.
TOOLS := $(patsubst tests/tools/%/requirements.txt,%,$(wildcard tests/tools/*/requirements.txt))

# make would delete these after the tests: no file's own rule names them
.PRECIOUS: .venv-tools/%/.installed

.PHONY: demo test tools check bench tables wheels mini embed clean

demo: $(DEMO)/.installed
	$(DEMO)/bin/qalign-fast score samples --format table

test: $(DEV)/.installed
	$(DEV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

tools: $(TOOLS:%=tool-%)

tool-%: .venv-tools/%/.installed
	.venv-tools/$*/bin/python -m pytest --confcutdir tests/tools tests/tools/$* tests/tools/test_tool_examples.py

check: $(DEV)/.installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

# The embedded model's speed on this machine; BENCH="throughput --model path/to/artifact" measures something else.
BENCH ?= latency
bench: $(DEV)/.installed
	$(DEV)/bin/qalign-fast bench $(BENCH)

# The tables of README.md and docs/measured.md, made anew from bench/results.
tables: $(DEV)/.installed
	$(DEV)/bin/python -m qalign_bench.figures.tables

# The pure wheel, and one with compiled kernels for each kind of Linux machine that there is a compiler for.
wheels: $(DEV)/.installed
	$(DEV)/bin/python kernels/wheels.py dist

# Trains the embedded model from scratch (half an hour on two cores) and exports it; `make embed` only exports.
mini: $(DEV)/.installed
	PYTHONPATH=export $(DEV)/bin/python -m qalign_train.train work/mini
	rm -rf models/mini && cp -r work/mini/checkpoint models/mini
	$(MAKE) embed

embed: $(DEV)/.installed
	rm -rf qalign_fast/mini
	$(DEV)/bin/qalign-fast export models/mini qalign_fast/mini --precision int8 --engine torch --calibration-count 16 --task quality --license Apache-2.0
	PYTHONPATH=export $(DEV)/bin/python -m qalign_train.evaluate

clean:
	rm -rf $(DEMO) $(DEV) .venv-tools build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install --quiet --disable-pip-version-check '.[cli]'
	touch $@

$(DEV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(DEV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# a tool that needs torch has a line `torch` in its requirements; no-deps.txt lists what asks for more than its part needs
.venv-tools/%/.installed: tests/tools/%/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-tools/$*
	.venv-tools/$*/bin/pip install --quiet --disable-pip-version-check $(shell grep -qx torch $< && echo '$(TORCH)') -e . pytest -r $<
	$(if $(wildcard tests/tools/$*/no-deps.txt),.venv-tools/$*/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/tools/$*/no-deps.txt)
	touch $@
