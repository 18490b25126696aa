# Set-up and main jobs; `make help` lists them. Settings go in ARGS: make serve ARGS="engine.max_model_len=2048 llm.num_replicas=2"
# The lock to install from: gpu where there is an NVIDIA card, else cpu.
EXTRA ?= $(if $(wildcard /dev/nvidia[0-9]*),gpu,cpu)
RUN = .venv/bin/python
READY = .venv/ready-$(EXTRA)
BROWSER = $(wildcard tests/browser/test_*.py)
# Debian's packages that some tests need: without them, these tests are skipped. The font has Chinese characters.
PROGRAMS = caddy chromium fontconfig fonts-wqy-microhei iproute2 nginx openssl postgresql prometheus redis-server

.PHONY: help serve stop monitoring report test beside lint unit browser $(BROWSER) parts e2e long v2 clients vllm-tests fuzz programs bench chaos soak gpu-check nano lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

serve: $(READY) ## start the application: the embedded nano model without a GPU, Satori-7B-Round2 with one
	@exec $(RUN) -m deployments.launch $(ARGS)

stop: $(READY) ## stop the application from another terminal: ARGS=http.port=8001
	@exec $(RUN) -m deployments.launch.stop $(ARGS)

monitoring: $(READY) ## Prometheus, and Grafana and Alertmanager where installed: ARGS="--url http://host:8000"
	@exec $(RUN) -m monitoring.serve $(ARGS)

report: .venv/ready-test ## draw the dashboards out of a running Prometheus
	$(RUN) -m monitoring.report $(ARGS)

# The end-to-end tests, and in the CPU time that they leave all others. The browser tests come first: they suffer most from waiting.
test: .venv/ready-test ## the tests, but for the long ones; those that miss a program are skipped, and named at the end
	@rm -rf .run/skipped; $(MAKE) --jobs=2 e2e beside; status=$$?; $(RUN) -m tests.support.programs .run/skipped || status=1; exit $$status

beside: .venv/ready-test
	@mkdir -p .run; nice -n 10 $(MAKE) --keep-going browser lint unit parts >.run/beside.txt 2>&1; \
	status=$$?; cat .run/beside.txt; exit $$status

lint: .venv/ready-test ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

unit: .venv/ready-test ## tests of single modules: ARGS=tests/unit/... or options of pytest
	$(RUN) -m pytest $(if $(filter tests/%,$(ARGS)),,tests/unit) $(ARGS)

browser: $(BROWSER) ## tests of the page in Debian's Chromium

$(BROWSER): .venv/ready-test
	$(RUN) -m pytest $@ $(ARGS)

parts: .venv/ready-test ## tests of real parts of the application, each by itself
	$(RUN) -m pytest tests/parts --timeout=240 $(ARGS)

# The time limit of a test includes the start of its application, which takes longer on a busy machine.
e2e: .venv/ready-test ## tests of the whole application: ARGS=tests/e2e/... or options of pytest
	$(RUN) -m pytest $(if $(filter tests/%,$(ARGS)),,tests/e2e) -m "not long" --timeout=240 $(ARGS)

long: .venv/ready-test ## tests of the whole application that take minutes: redeploys, several hosts, autoscaling, pauses, accuracy, other modes
	$(RUN) -m pytest tests/e2e -m long --timeout=240 $(ARGS)

# The libraries have environments of their own.
clients: .venv/ready-test .run/clients/ready ## tests with other libraries for clients: each gets typed answers from the application
	$(RUN) -m pytest tests/clients --timeout=600 $(ARGS)

.run/clients/ready: dev/clients.py $(wildcard dev/locks/clients-*.txt) dev/locks/hashes.txt .venv/ready-test
	$(RUN) dev/clients.py
	@touch $@

vllm-tests: .venv/ready-test ## vLLM's own tests of its API server, against the application and a bare server: ARGS are pytest's
	$(RUN) dev/vllm_tests $(ARGS)

v2: .venv/ready-test ## vLLM's Model Runner V2, which GPUs take, on the CPU: kernels, and the application; ARGS=tests/v2/... or options of pytest
	$(RUN) dev/v2.py $(RUN) -m pytest $(if $(filter tests/%,$(ARGS)),,tests/v2) --timeout=1800 $(ARGS)

fuzz: .venv/ready-test ## ten thousand random requests to the application, and ten thousand by its OpenAPI schema; FUZZ_SEED=... repeats a run
	FUZZ_REQUESTS=10000 FUZZ_BY_SCHEMA=$(or $(FUZZ_BY_SCHEMA),10000) $(RUN) -m pytest tests/e2e/default/test_hostile.py -k "random_requests or documentation" --timeout=3600 $(ARGS)

programs: ## install the Debian packages that some tests need (as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PROGRAMS)

# With ARGS=--peers also ray.serve.llm and vLLM's router, from their own environment.
bench: $(READY) $(if $(findstring --peers,$(ARGS)),.run/peers/ready) ## throughput and latency beside bare vLLM, in one run
	$(RUN) -m cluster.bench $(ARGS)

.run/peers/ready: dev/peers.py $(READY)
	$(RUN) dev/peers.py
	@touch $@

chaos: $(READY) ## kill and freeze parts of the application under load, and count what clients notice
	$(RUN) -m cluster.bench.chaos $(ARGS)

soak: $(READY) ## an hour of mixed requests with replicas killed, and what grows meanwhile: ARGS="--minutes 10"
	$(RUN) -m cluster.bench.soak $(ARGS)

# On a machine without a card: make gpu-check ARGS=--dry
gpu-check: $(READY) ## check a host with NVIDIA cards, made for ten minutes, and write a report to send
	$(RUN) -m cluster.check $(ARGS)

lock: $(READY) ## resolve the locks anew, after a change of the versions in pyproject.toml
	$(RUN) dev/lock.py

nano: $(READY) ## train the embedded model again (two hours on 2 cores); an interrupted run continues
	$(RUN) -m models.recipe .run/nano

# dev/host.sh prints the Python to use, or why this host cannot run the application.
$(READY): dev/locks/$(EXTRA).txt dev/locks/hashes.txt dev/install.py
	@test -x $(RUN) || { python=$$(sh dev/host.sh) && $$python -m venv .venv; }
	@$(RUN) dev/install.py $(EXTRA)
	@touch $@

.venv/ready-test: dev/locks/$(EXTRA).txt dev/locks/test.txt dev/locks/hashes.txt dev/install.py
	@test -x $(RUN) || { python=$$(sh dev/host.sh) && $$python -m venv .venv; }
	@$(RUN) dev/install.py $(EXTRA) test
	@touch $(READY) $@

clean: ## remove what was installed and written here
	rm -rf .venv .run
