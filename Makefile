# Every target but gpu builds .venv by itself; nothing else has to be prepared.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DIST := dist

.PHONY: demo test check sanitize bench report wheel aot gpu tiny-vlm clean

demo: $(STAMP)  ## prune the tiny VLM and the full-size tower; writes demo-out/
	$(BIN)/infoprune demo

test: $(STAMP) check  ## everything that CI runs
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tiles in plain C++, because the sanitizers see through no AMX instruction.
SANITIZED := INFOPRUNE_CXXFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -DINFOPRUNE_EMULATE_AMX"
# libstdc++ beside it: the sanitizer looks for the function that throws when the process starts, and finds none later.
ASAN = LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0
SHARED_WORK := csrc/isa_*.cpp csrc/dispatch.cpp tests/ops/shared_work.cpp

sanitize: $(STAMP)  ## the CPU kernels under GCC's address, undefined-behaviour and thread sanitizers
	$(SANITIZED) $(BIN)/python -c 'from infoprune_rt.ops.cpu_library import compiled_library; compiled_library()'
	$(SANITIZED) $(ASAN) UBSAN_OPTIONS=print_stacktrace=1 $(BIN)/python -m pytest tests/ops/test_cpu_kernels.py
	$${CXX:-g++} -std=c++20 -O1 -g -w -fsanitize=thread -DINFOPRUNE_EMULATE_AMX -Icsrc $(SHARED_WORK) -pthread -o .venv/shared_work
	.venv/shared_work

bench: $(STAMP) $(STAMP)-bench  ## the slow measurements behind the README's figures; writes benchmarks/results/
	@status=0; for script in $(filter-out %/report.py %/gpu.py %/gpu_operators.py %/gpu_tower.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || status=1; done; exit $$status

report: $(STAMP)  ## write the README's tables from the result files of this machine
	$(BIN)/python benchmarks/report.py --machine $$($(BIN)/python -c 'from infoprune_rt.benchmarking.environment import machine_name; print(machine_name())')

wheel: $(STAMP)  ## a wheel with the compiled CPU kernels, in dist/: no compiler is needed where it is installed
	library=$$(env -u INFOPRUNE_CXXFLAGS $(BIN)/python -c 'from infoprune_rt.ops.cpu_library import compiled_library; print(compiled_library())') && \
	INFOPRUNE_WHEEL_LIBRARY=$$library $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir $(DIST) .

aot: $(STAMP)  ## compile the GPU kernels for sm_80, sm_89 and sm_90 (no GPU is needed); writes the tables of docs/gpu-kernels.md
	$(BIN)/python -m infoprune_kernels.roofline docs/gpu-kernels.md
	$(BIN)/python -m infoprune_kernels.aot benchmarks/results/aot/kernels.json docs/gpu-kernels.md

# No .venv: on a machine with a GPU its own Python has PyTorch built for it.
gpu:  ## all that needs a GPU, in 8 minutes: tests, sanitizer, tuning, benchmarks; writes benchmarks/results/<device>/
	PYTHONPATH=.:kernels$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) benchmarks/gpu.py

tiny-vlm: $(STAMP)  ## train the shipped model again from its seed (about an hour on 2 cores)
	$(BIN)/python -m infoprune_rt.demo.tiny_training

clean:
	rm -rf .venv demo-out runs build dist *.egg-info

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(STAMP)-bench: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	touch $@
