# Set-up and main jobs. Settings go in ARGS: make serve ARGS="engine.max_model_len=2048 llm.num_replicas=2"
PYTHON ?= python3.11
# The lock to install from: gpu where there is an NVIDIA card, else cpu.
EXTRA ?= $(if $(wildcard /dev/nvidia[0-9]*),gpu,cpu)
RUN = .venv/bin/python
READY = .venv/ready-$(EXTRA)
BROWSER = $(wildcard tests/browser/test_*.py)

.PHONY: serve stop monitoring report test beside lint unit browser $(BROWSER) parts e2e bench chaos nano lock clean

serve: $(READY)
	@exec $(RUN) -m deployments.launch $(ARGS)

# Stop the application from another terminal. Ray guards its cluster with a token, which the command must be told to use.
stop: $(READY)
	RAY_AUTH_MODE=token .venv/bin/serve shutdown -y

# Prometheus, and Grafana and Alertmanager where installed, beside a running application: make monitoring ARGS="--url http://host:8000"
monitoring: $(READY)
	@exec $(RUN) -m monitoring.serve $(ARGS)

# Draw the dashboards out of a running Prometheus.
report: .venv/ready-test
	$(RUN) -m monitoring.report $(ARGS)

# Those of the whole application, and what needs none of it in the CPU time that they leave. The browser does not like to wait.
test: .venv/ready-test
	@$(MAKE) --jobs=2 e2e beside

beside: .venv/ready-test
	@mkdir -p .run; nice -n 10 $(MAKE) --keep-going browser lint unit parts >.run/beside.txt 2>&1; \
	status=$$?; cat .run/beside.txt; exit $$status

lint: .venv/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

unit: .venv/ready-test
	$(RUN) -m pytest tests/unit $(ARGS)

# The UI in Debian's chromium; skipped where there is none.
browser: $(BROWSER)

$(BROWSER): .venv/ready-test
	$(RUN) -m pytest $@ $(ARGS)

# Real parts of the application, each by itself.
parts: .venv/ready-test
	$(RUN) -m pytest tests/parts --timeout=240 $(ARGS)

# A test's time limit is not what an application may take to start on a busy machine.
e2e: .venv/ready-test
	$(RUN) -m pytest tests/e2e --timeout=240 $(ARGS)

# With ARGS=--peers also ray.serve.llm and vLLM's router, from an environment of their own.
bench: $(READY) $(if $(findstring --peers,$(ARGS)),.run/peers/ready)
	$(RUN) -m cluster.bench $(ARGS)

.run/peers/ready: dev/peers.py $(READY)
	$(RUN) dev/peers.py
	@touch $@

# Kill and freeze parts of the application under load, and count what clients notice.
chaos: $(READY)
	$(RUN) -m cluster.chaos $(ARGS)

# Resolve the locks anew, after a change of the versions in pyproject.toml.
lock: $(READY)
	$(RUN) dev/lock.py

# Train the embedded model again (an hour on 2 cores); goes on where it was interrupted.
nano: $(READY)
	$(RUN) -m models.recipe .run/nano

$(READY): dev/locks/$(EXTRA).txt dev/install.py
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@$(RUN) dev/install.py $(EXTRA)
	@touch $@

.venv/ready-test: dev/locks/$(EXTRA).txt dev/locks/test.txt dev/install.py
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@$(RUN) dev/install.py $(EXTRA) test
	@touch $(READY) $@

clean:
	rm -rf .venv .run
