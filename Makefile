# Two commands: `make demo` and `make test`. Both make their own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Containers often set it, and then each of the many processes of the tests compiles what it imports of this package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test static lint types imports pytest pytest-numeric examples test-vllm install-quantize test-quantize docs mutants bench bench-gpu clean

help:
	@echo "make demo   install, then the whole path on a tiny model (no download)"
	@echo "make test   install, then lint, types, import contract and tests"
	@echo "make pytest-numeric  the numeric tests with the arithmetic of older processors"
	@echo "make examples  the examples as their page shows them, with the built wheel in an environment of its own"
	@echo "make test-vllm  the tests of the vLLM engines, in an environment of their own (CPU build)"
	@echo "make test-quantize  the tests of GPTQ, in an environment of their own (CPU build)"
	@echo "make docs   the documentation as a site, in runs/site; spelling, style and links are checked"
	@echo "make mutants  small wrong changes to the code that no test notices"
	@echo "make bench  the benchmarks behind docs/benchmarks.md"
	@echo "make bench-gpu  teacher and student on a GPU, with the packages of GPU_PYTHON, which installs nothing"

# Modules are compiled on all cores, where pip would take one. Some packages ship files that no Python 3 compiles.
compile = $(1)/bin/python -m compileall -qq -j 0 $(1)/lib || true

# torch comes first and pinned, so that no other package picks a build of its own.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev,plots,quantization,ray,tensorboard,trl,s3,zarrs]"
	$(call compile,$(VENV))
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/logitbank demo

# Style, types and the import contract beside the tests: two cores have time for them.
test: install
	$(MAKE) --no-print-directory --jobs 2 static pytest

static: lint imports types

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests/benchmarks tests/docs tests/mutation

imports: install
	$(BIN)/lint-imports

# Two processes of one thread each; a file's tests stay in one of them, so that its fixtures are made once.
WORKERS ?= 2

pytest: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# The arithmetic of other processors: float32 sums round otherwise where vectors are narrower. Only files that have such
# tests are imported, a quarter of the time that all take.
NUMERIC := grep -rl mark.numeric tests --include='test_*.py'

pytest-numeric: install
	for capability in default avx2; do \
		ATEN_CPU_CAPABILITY=$$capability OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m numeric $$($(NUMERIC)) \
			--numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder || exit 1; \
	done

# What a user gets: an environment that has the wheel and what it needs, made anew, and nothing of this checkout.
# EXAMPLES_OUTPUT=DIR keeps what the examples write.
EXAMPLES_VENV ?= .venv-examples
EXAMPLES_OUTPUT ?=

examples: install
	rm -rf $(EXAMPLES_VENV) runs/dist
	$(BIN)/python -m build --no-isolation --outdir runs/dist . > /dev/null
	$(PYTHON) -m venv $(EXAMPLES_VENV)
	$(EXAMPLES_VENV)/bin/pip install --quiet --upgrade pip
	$(EXAMPLES_VENV)/bin/pip install --quiet --no-compile --constraint constraints.txt torch
	$(EXAMPLES_VENV)/bin/pip install --quiet --no-compile --constraint constraints.txt runs/dist/*.whl
	$(EXAMPLES_VENV)/bin/python tests/examples/run.py $(EXAMPLES_OUTPUT)

# An environment of its own, $(1), for what pins other versions than ours. No dependencies are resolved after torch's: the
# list $(2) is complete, and leaves out torchvision, torchaudio, torchcodec and triton, whose CUDA builds break the CPU
# build.
define separate
$(PYTHON) -m venv $(1)
$(1)/bin/pip install --quiet --upgrade pip
$(1)/bin/pip install --quiet --no-compile --constraint $(2) torch
$(1)/bin/pip install --quiet --no-compile --no-deps --requirement $(2)
$(1)/bin/pip install --quiet --no-compile --no-deps --editable .
$(call compile,$(1))
endef

# vLLM pins torch and transformers.
VLLM_VENV ?= .venv-vllm

$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	$(call separate,$(VLLM_VENV),constraints-vllm.txt)
	touch $@

test-vllm: install $(VLLM_VENV)/.installed
	HF_PYTHON="$(abspath $(BIN)/python)" $(VLLM_VENV)/bin/python -m pytest tests/vllm

# llm-compressor wants an older transformers than we do.
QUANTIZE_VENV ?= .venv-quantize

$(QUANTIZE_VENV)/.installed: pyproject.toml constraints-quantize.txt
	$(call separate,$(QUANTIZE_VENV),constraints-quantize.txt)
	touch $@

install-quantize: $(QUANTIZE_VENV)/.installed

test-quantize: install install-quantize
	HF_PYTHON="$(abspath $(BIN)/python)" $(QUANTIZE_VENV)/bin/python -m pytest tests/quantize

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Spelling is checked in everything but the tests, which misspell on purpose; style in pages, messages and docstrings. The variable silences a notice that
# docs/decisions.md has: Material's maintenance ends in 2027. With --quiet, mkdocs would not count warnings.
docs: $(VENV)/.installed-docs
	$(BIN)/codespell *.md *.toml *.yml Makefile docs logitbank/*
	$(BIN)/python -m tests.docs.style
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Hours for all of them; ARGUMENTS="--target losses --sample 60" takes some.
mutants: install
	$(BIN)/python -m tests.mutation.run $(ARGUMENTS)

# Takes the better part of an hour on two cores; each script says what it measures and takes arguments of its own.
# The vLLM engine is measured where `make test-vllm` has made its environment.
SHARED ?= ../shared
BENCH_STORE := runs/bench/store
BENCH_CHAT := runs/bench/chat
PROXY := model.name=$(SHARED)/models/proxy-qwen3 data.mirror=$(SHARED)/hub

bench: install
	$(BIN)/build-teacher-cache --store $(BENCH_STORE) --view zeroshot $(PROXY) "tasks=[gsm8k,nli,pa,qa,ner,pos]" \
		data.train_languages=in_language data.max_train_per_task=620 store.encoding=exact
	$(BIN)/python -m tests.benchmarks.bench_codec $(BENCH_STORE) --top-k 256 128 64 16
	$(BIN)/python -m tests.benchmarks.bench_store_read $(BENCH_STORE)
	$(BIN)/python -m tests.benchmarks.bench_exchange $(BENCH_STORE)
	$(BIN)/python -m tests.benchmarks.bench_student --store $(BENCH_STORE) --model $(SHARED)/models/proxy-qwen3
	$(BIN)/build-teacher-cache --store $(BENCH_CHAT) --view zeroshot $(PROXY) "tasks=[chat]" teacher.top_k=64 \
		chat.train=$(SHARED)/chat/train.jsonl chat.validation=$(SHARED)/chat/validation.jsonl \
		data.max_train_per_task=48 data.max_validation_per_task=4 data.max_student_tokens=2048
	$(BIN)/python -m tests.benchmarks.bench_packing --store $(BENCH_CHAT) --model $(SHARED)/models/proxy-qwen3
	$(BIN)/python -m tests.benchmarks.bench_conflict --store $(BENCH_STORE) --model $(SHARED)/models/proxy-qwen3
	$(BIN)/python -m tests.benchmarks.bench_conflict --store $(BENCH_STORE) --model $(SHARED)/models/proxy-qwen3 --lora
	$(BIN)/python -m tests.benchmarks.bench_waiting --store $(BENCH_STORE) --model $(SHARED)/models/proxy-qwen3
	$(BIN)/python -m tests.benchmarks.bench_signals --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_build --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_ray --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_prefix_reuse --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_padding --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_teacher_engines hf --shared $(SHARED)
	[ ! -e $(VLLM_VENV)/.installed ] || $(VLLM_VENV)/bin/python -m tests.benchmarks.bench_teacher_engines vllm --shared $(SHARED)
	[ ! -e $(VLLM_VENV)/.installed ] || $(VLLM_VENV)/bin/python -m tests.benchmarks.bench_vllm_capture --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_conversation_files
	$(BIN)/python -m tests.benchmarks.bench_conversations --output runs/bench/conversations --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_scale
	$(BIN)/python -m tests.benchmarks.bench_plan --prefixes
	$(BIN)/python -m tests.benchmarks.bench_results
	$(BIN)/python -m tests.benchmarks.bench_help
	$(BIN)/python -m tests.benchmarks.bench_study --output runs/bench/study --shared $(SHARED)
	$(BIN)/python -m tests.benchmarks.bench_preference_step --model $(SHARED)/models/proxy-qwen3 --tokens 256 --rounds 12
	$(BIN)/python -m tests.benchmarks.bench_preference_rows --model $(SHARED)/models/proxy-qwen3
	$(BIN)/python -m tests.benchmarks.bench_preference_world --output runs/bench/preference-world
	$(BIN)/python -m tests.benchmarks.bench_preference --output runs/bench/preference --shared $(SHARED)
	[ ! -e $(QUANTIZE_VENV)/.installed ] || $(BIN)/python -m tests.benchmarks.bench_quantize \
		--checkpoint runs/bench/preference/merged --store runs/bench/preference/store --output runs/bench/quantised \
		--python $(QUANTIZE_VENV)/bin/python

# Where a GPU is, with what is installed there: parts that lack a package are left out. Nothing is installed.
GPU_PYTHON ?= python3

bench-gpu:
	PYTHONPATH=. $(GPU_PYTHON) -m tests.benchmarks.bench_gpu

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
