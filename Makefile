# Every target creates .venv in this checkout and installs what it needs. No other tool has to be there but python3 and make.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
SETUP  := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo up test prove-losses prove-tunings faults check format bench bench-uploads bench-first-step bench-losses bench-training bench-training-gpu bench-serving bench-many-models bench-control-plane clean fuzz openapi

help:            ## Show this help
	@grep -hE '^[a-z-]+: .*## |^[a-z-]+:  +## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# torch comes first and by itself: whatever build that brings, a later, looser requirement finds it there and pulls no
# other. Where your index's default build carries CUDA, point pip at the CPU builds (see the README).
$(SETUP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(SETUP)  ## Create .venv and install everything

demo: $(SETUP)   ## Upload, train, predict, then keep serving (DATA=file.csv TEXT=column LABEL=column for your own file)
	@$(BIN)/minimand demo $(if $(DATA),--data '$(DATA)') $(if $(TEXT),--text '$(TEXT)') $(if $(LABEL),--label '$(LABEL)')

up: $(SETUP)     ## Start broker, API and worker in the foreground
	@$(BIN)/minimand up

# Two processes, each with its own servers. A file's tests stay together, as they share what they trained; the files
# come in their order, in which the slow ones are early.
test: $(SETUP)   ## Run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

prove-losses: $(SETUP)  ## Train with every loss through the API, on real files (about 8 minutes on 2 cores)
	$(BIN)/python -m pytest -q -m proof tests/flows/test_every_loss.py tests/flows/test_sst2.py

prove-tunings: $(SETUP)  ## Train MiniLM on real questions by every tuning, and serve it (about 4 minutes on 2 cores)
	$(BIN)/python -m pytest -q -m proof tests/flows/test_every_tuning.py tests/ml/artifact/test_int8.py

faults: $(SETUP)  ## Every row of the fault table, again and again, with a report (about an hour on 2 cores)
	$(BIN)/python -m pytest -q -m "proof or not proof" tests/faults --faults --numprocesses 2

fuzz: $(SETUP)  ## schemathesis over the whole API, and any bytes into every upload parser, at length (about an hour)
	$(BIN)/python -m pytest -q -m "proof or not proof" --hypothesis-profile fuzz --timeout 3600 tests/app/http/test_schemathesis.py tests/ml/data/test_any_bytes.py

check: $(SETUP)  ## Lint, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(SETUP) ## Format and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(SETUP) ## Write openapi.json from the code
	$(BIN)/minimand openapi > openapi.json

bench: bench-uploads bench-first-step bench-control-plane bench-serving bench-many-models bench-losses bench-training  ## Run every benchmark

bench-uploads: $(SETUP)  ## Upload speed and memory against the plain parser
	$(BIN)/python -m benchmarks.uploads

bench-first-step: $(SETUP)  ## From a submitted job to its first step, with and without a spare trainer
	$(BIN)/python -m benchmarks.first_step

bench-control-plane: $(SETUP)  ## Lists, jobs and claims with 100,000 jobs in the database, against 100, on both databases
	$(BIN)/python -m benchmarks.control_plane

bench-serving: $(SETUP)  ## Predictions against other servers and onnxruntime alone, by wrk (hours; --quick in the module's help)
	$(BIN)/python -m benchmarks.serving

bench-many-models: $(SETUP)  ## A thousand heads over one encoder, and 200 LoRA models, against one; what tuned models cost (--quick in the module's help)
	$(BIN)/python -m benchmarks.many_models

bench-losses: $(SETUP)  ## What the losses' papers claim, over 5 seeds (hours; goes on where it was stopped)
	$(BIN)/python -m benchmarks.losses

bench-training: $(SETUP)  ## Speed and accuracy against transformers' Trainer (hours; --quick in the module's help)
	$(BIN)/python -m benchmarks.training

bench-training-gpu: $(SETUP)  ## Speed on a GPU against transformers' Trainer (not part of bench: it needs a GPU)
	$(BIN)/python -m benchmarks.training_gpu

clean:           ## Remove the virtual environment and the caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
