# Set-up and main jobs. Settings go in ARGS: make serve ARGS="engine.max_model_len=2048 llm.num_replicas=2"
PYTHON ?= python3.11
# The lock to install from: gpu where there is an NVIDIA card, else cpu.
EXTRA ?= $(if $(wildcard /dev/nvidia[0-9]*),gpu,cpu)
RUN = .venv/bin/python
READY = .venv/ready-$(EXTRA)

.PHONY: serve stop test unit e2e lint bench lock clean

serve: $(READY) models/nano/config.json
	@exec $(RUN) -m deployments.launch $(ARGS)

# Stop the application from another terminal. Ray guards its cluster with a token, which the command must be told to use.
stop: $(READY)
	RAY_AUTH_MODE=token .venv/bin/serve shutdown -y

test: lint unit e2e

lint: .venv/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

unit: .venv/ready-test models/nano/config.json
	$(RUN) -m pytest tests/unit $(ARGS)

e2e: .venv/ready-test models/nano/config.json
	$(RUN) -m pytest tests/e2e $(ARGS)

bench: $(READY) models/nano/config.json
	$(RUN) -m cluster.bench $(ARGS)

# Resolve the locks anew, after a change of the versions in pyproject.toml.
lock: $(READY)
	$(RUN) dev/lock.py

models/nano/config.json: models/seeded.py | $(READY)
	@echo "  model     making models/nano (seeded random weights, 3 MB)"
	@$(RUN) -m models.seeded models/nano

.venv/ready-%: dev/locks/%.txt dev/install.py
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@$(RUN) dev/install.py $*
	@touch $@

.venv/ready-test: $(READY)

clean:
	rm -rf .venv .run models/nano
