# The few commands a person types. Needs Rust, make and a C linker; models need python3 with pip or the
# Hugging Face hub. Nothing is installed, nothing needs root.

.DEFAULT_GOAL := help
SHELL := /bin/bash

# The model of the demo: a name of `paceline models list`, a path, or hf:org/repo. The default pair is
# coder-1.5b with coder-0.5b as its drafter; another MODEL runs alone unless DRAFTER names one.
export MODEL DRAFTER

.PHONY: help demo test fuzz lint bench cuda

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Build, fetch models, start a cluster, stream an answer (MODEL=smollm2-135m: 98 MB instead of 1.7 GB)
	@scripts/demo.sh

test: ## Run all tests (PACELINE_REQUIRE=all: a skipped test fails)
	@scripts/test.sh

fuzz: ## Run the property tests on fresh random cases (CASES=2000 each)
	@scripts/fuzz.sh

lint: ## Check format, clippy, protos, licences
	@scripts/lint.sh

bench: ## Time the engine on this machine (MODEL=..., PROFILE=release; docs/benchmarks.md)
	cargo run --profile $(or $(PROFILE),dev) --package cli --bin paceline -- \
		bench engine --model $(or $(MODEL),smollm2-135m) --batch 1,4 --rows 1,2,4,8 $(BENCH)

cuda: ## Fetch a CUDA compiler into .cuda and build the release binary with the CUDA back end
	@scripts/cuda.sh
