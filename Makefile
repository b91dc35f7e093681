# PocketVLM. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= jobs/digits.yaml

# Images are called pocketvlm-<folder of images/>:$(TAG), and are pushed to $(REGISTRY). BUILDER is docker or buildah.
BUILDER ?= docker
BUILD_FLAGS ?=
PYTHON_IMAGE ?=
REGISTRY ?= localhost:5000
TAG ?= dev
JOB_IMAGES := labeller trainer merger quantiser evaluator conductor
ALL_IMAGES := base build torch llama-cpp $(JOB_IMAGES)

# The cluster that kubectl talks to, unless CONTEXT names another. The release is called as the run file; HELM_FLAGS adds values.
CONTEXT ?=
HELM_FLAGS ?=
RELEASE ?= $(basename $(notdir $(RUN)))

.DEFAULT_GOAL := help
.PHONY: help setup llama-cpp demo test check test-fast bench lock docs snapshots clean \
  images push-images $(ALL_IMAGES:%=image-%) cluster-run cluster-clean kind-up kind-load kind-run kind-down

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY) ## virtual environment with the locked dependencies

# pip is the installer of last resort: uv takes a fifth of the time and shares files between clones, and is locked too.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]}: PocketVLM needs 3.11 to 3.13; set PYTHON=")'
	@echo "setting up $(VENV) (about 5 GB, most of it torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@grep -A 40 '^uv==' requirements.lock | awk 'NR > 1 && /^[a-z]/ {exit} {print}' > $(VENV)/uv.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

llama-cpp: $(READY) ## build the pinned llama.cpp into the user cache folder, once for all clones
	@$(BIN)/python -m pocketvlm.llamacpp.build > /dev/null

demo: llama-cpp ## images to a measured, released GGUF pair on this machine
	@$(BIN)/pocketvlm run $(RUN)

check: $(READY) ## style and types
	@$(BIN)/ruff check src tests bench docs
	@$(BIN)/mypy

# The tests of a cluster assert times of what they share with nobody; the others share the cores of this machine.
test: check llama-cpp ## all tests
	@runs=$$(mktemp -d) && trap 'rm -rf "$$runs"' EXIT && export POCKETVLM_TEST_RUNS=$$runs && \
	unset PYTHONDONTWRITEBYTECODE; \
	$(BIN)/pytest -m "not cluster" --numprocesses 2 --dist loadgroup && $(BIN)/pytest -m cluster tests/cluster tests/images

test-fast: check ## the tests that need no llama.cpp
	@$(BIN)/pytest -m "not llamacpp and not chain and not real_size"

bench: llama-cpp ## ratios, both sides in one run (result in bench/results); then operations and memory of training steps
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.flops
	@$(BIN)/python -m bench.memory

UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header
UV_SUBSET := $(UV_COMPILE) --python-version 3.12 --constraint requirements.lock

lock: $(READY) ## renew requirements.lock from pyproject.toml, and the images' parts of it
	@$(UV_COMPILE) --python-version 3.11 --all-extras pyproject.toml -o requirements.lock
	@$(UV_SUBSET) --extra digits --extra teacher --extra hub --extra kaggle pyproject.toml -o images/labeller/requirements.txt
	@$(UV_SUBSET) --extra train pyproject.toml -o images/torch/requirements.txt
	@for image in build llama-cpp trainer conductor; do \
	  $(UV_SUBSET) images/$$image/requirements.in -o images/$$image/requirements.txt || exit 1; \
	done

images: $(JOB_IMAGES:%=image-%) ## build every image; what has not changed comes from the builder's cache

# A Dockerfile names its bases as `FROM ${TORCH}`; each is given the image of this tag.
image-build image-torch: image-base
image-torch image-labeller image-conductor: image-build
image-llama-cpp image-trainer image-merger: image-torch
image-quantiser image-evaluator: image-llama-cpp

build-image = $(if $(filter buildah,$(BUILDER)),buildah bud --layers --pull=false,docker build) $(BUILD_FLAGS)
bases = $(filter-out PYTHON_IMAGE,$(shell sed -n 's/^FROM $${\([A-Z_]*\)}.*/\1/p' images/$(1)/Dockerfile))
build-args = $(foreach base,$(call bases,$(1)),$(base)=pocketvlm-$(shell echo $(base) | tr A-Z_ a-z-):$(TAG)) \
  $(if $(filter base,$(1)),$(PYTHON_IMAGE:%=PYTHON_IMAGE=%)) \
  $(if $(filter $(1),$(JOB_IMAGES)),REVISION=$(shell git rev-parse HEAD))

$(ALL_IMAGES:%=image-%): image-%:
	@start=$$(date +%s) && echo "building pocketvlm-$*:$(TAG)" && \
	$(build-image) --file images/$*/Dockerfile --tag pocketvlm-$*:$(TAG) $(addprefix --build-arg ,$(call build-args,$*)) . && \
	echo "built pocketvlm-$*:$(TAG) in $$(($$(date +%s) - start)) s"

push-images: ## push what Jobs run to REGISTRY; one on localhost may speak plain HTTP
	@set -e; for image in $(JOB_IMAGES:%=pocketvlm-%:$(TAG)); do \
	  if [ $(BUILDER) = buildah ]; then \
	    buildah push --quiet $(if $(filter localhost:%,$(REGISTRY)),--tls-verify=false --disable-compression) localhost/$$image docker://$(REGISTRY)/$$image; \
	  else docker tag $$image $(REGISTRY)/$$image; docker push --quiet $(REGISTRY)/$$image; fi; \
	  echo "$(REGISTRY)/$$image"; \
	done

cluster-run: ## helm install RUN on the current cluster with the images of REGISTRY, and follow it to its end
	helm install $(RELEASE) charts/pocketvlm --values charts/pocketvlm/values-kind.yaml --values $(RUN) \
	  --set image.registry=$(REGISTRY) --set image.tag=$(TAG) $(HELM_FLAGS) $(CONTEXT:%=--kube-context %)
	kubectl logs --follow --pod-running-timeout=10m job/$(RELEASE)-conductor $(CONTEXT:%=--context %)
	kubectl wait --for=condition=Complete --timeout=60s job/$(RELEASE)-conductor $(CONTEXT:%=--context %)

cluster-clean: ## helm uninstall it; what is in the store stays
	helm uninstall $(RELEASE) --wait $(CONTEXT:%=--kube-context %)

kind-up: ## a local cluster and a registry in docker, by kind
	REGISTRY=$(REGISTRY) kind/up

kind-load: ## give the cluster the images that `make images` has built
	$(MAKE) push-images

kind-run: ## the run file on the kind cluster
	$(MAKE) cluster-run CONTEXT=kind-pocketvlm

kind-down: ## delete cluster and registry
	kind/down

docs: $(READY) ## regenerate what is generated in docs and in the chart
	@$(BIN)/python docs/generate.py

snapshots: $(READY) ## write the chart's default renders anew; look at the difference before the commit
	@RENEW_SNAPSHOTS=1 $(BIN)/pytest -q tests/chart/test_snapshots.py

clean: ## delete the environment and local runs; the llama.cpp build stays
	rm -rf $(VENV) .pocketvlm build
