# make demo | make test | make check | make bench | make gpu. Stamps in .venv remember what is installed; touching pyproject.toml or
# constraints.txt installs again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
DEMO := g4seg_trt/assets/demo
DEMO_OUTPUT := demo-output
DEMO_CLASS := cross

.PHONY: demo test check bench gpu format clean
.DELETE_ON_ERROR:

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.cpu: pyproject.toml constraints.txt | $(VENV)/.created
	$(PIP) install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

# torch first, alone: no other requirement gets to pull another build of it.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	$(PIP) install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	touch $@

# PyPI has only the source of DenseCRF (the extra crf), which takes a C++ compiler.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --editable '.[crf]' || \
		echo "DenseCRF was not installed: the tests of --post crf will be skipped" >&2
	touch $@ $(VENV)/.cpu

# Names of TensorRT's API, to hold ours against; TensorRT itself is not installed.
$(VENV)/.tensorrt-api: tests/tensorrt/install_bindings.py | $(VENV)/.dev
	$(BIN)/python tests/tensorrt/install_bindings.py
	touch $@

demo: $(VENV)/.cpu
	mkdir -p $(DEMO_OUTPUT)
	$(BIN)/g4seg-refine --engine tiny --image $(DEMO)/image.png --mask $(DEMO)/mask.png \
		--class-name "$(DEMO_CLASS)" --ground-truth $(DEMO)/ground_truth.png \
		--output $(DEMO_OUTPUT)/probability.png --label $(DEMO_OUTPUT)/label.png \
		--overlay $(DEMO_OUTPUT)/overlay.png

# No test takes minutes; one that waits for what never comes says where. Two processes: one that dies ends the tests,
# for pytest-xdist, which would replace it, has been seen to wait for the dead one.
test: $(VENV)/.dev $(VENV)/.tensorrt-api
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 --timeout 600

# Every benchmark that this machine can run; ARGS="--small" takes half an hour, all of it two and a half.
bench: $(VENV)/.dev
	$(BIN)/python -m g4seg_bench.everything $(ARGS)

# On a machine with a GPU, with the Python that has torch (and TensorRT, onnxruntime-gpu) there: installs nothing.
# ARGS: options of the benchmark, such as "--only chain --results DIR".
gpu:
	PYTHONPATH="$(CURDIR):$(CURDIR)/engine:$(CURDIR)/export:$(CURDIR)/benchmarks$${PYTHONPATH:+:$$PYTHONPATH}" \
		$(PYTHON) -m g4seg_bench.gpu $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) build dist
