# `make demo` shows the package at work, `make test` runs every test. Both first make, in .venv/, models/ and
# build/, whatever is missing or older than what it is made of; nothing else is made again.

SHELL := /bin/bash

# The versions in requirements/constraints.txt are for Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
MODEL ?= smollm2
PROMPT ?= Name the capital of France.
BUDGET ?= $(BUDGET_OF_$(MODEL))
MODE ?= $(MODE_OF_$(MODEL))
PYTEST_ARGS ?=
export PROMPT BUDGET MODE

# A sourced ROS installation must not leak into the virtual environment.
unexport PYTHONPATH PYTHONHOME LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/done
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --constraint requirements/constraints.txt
GGUF := models/SmolLM2-135M-Instruct.Q4_1.gguf
RELU_FFN := resource/smollm2-135m-relu.ffn
STORE_OF_smollm2 := models/smollm2.store
STORE_OF_relu := models/smollm2-relu.store
STORE_OF_experts := models/smollm2-experts.store
STORE := $(STORE_OF_smollm2)
MODE_OF_relu := gated
BUDGET_OF_experts := 160MB
DEMO_STORE := $(or $(STORE_OF_$(MODEL)),$(error MODEL is '$(MODEL)'; it must be smollm2, relu or experts))

MESSAGES := $(wildcard flash_llm_msgs/*.* flash_llm_msgs/msg/* flash_llm_msgs/srv/* flash_llm_msgs/action/*)
NATIVE := $(wildcard native/*.* native/*/*)
INSTALLED := $(wildcard launch/* config/* examples/* resource/*) setup.py setup.cfg pyproject.toml package.xml
CONVERTER := $(wildcard flash_llm_ros/*.py $(foreach part,checkpoint checkpoint/families store convert,flash_llm_ros/$(part)/*.*))

# $(call step,NAME,WHAT,COMMAND): one line on the terminal; the rest goes to build/log/NAME.log.
define step
@mkdir -p build/log $(DONE)
@printf '%-64s' '$(2) ...'; start=$$SECONDS; \
if ( $(3) ) >build/log/$(1).log 2>&1; then echo "$$((SECONDS - start)) s"; \
else echo 'FAILED'; tail -n 40 build/log/$(1).log; echo 'The whole log: build/log/$(1).log'; exit 1; fi
endef

.PHONY: setup demo test lint manifests clean
.DELETE_ON_ERROR:

setup: $(DONE)/package $(STORE)/manifest.yaml

demo: setup $(DEMO_STORE)/manifest.yaml
	@$(BIN)/flash_llm demo --store $(DEMO_STORE) --prompt "$$PROMPT" $${BUDGET:+--budget "$$BUDGET"} $${MODE:+--mode "$$MODE"}

test: setup $(DONE)/test
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(DONE)/package $(DONE)/test
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo

# Maintainer and urls are filled in in package.xml alone.
manifests:
	@sed -i -e '/<maintainer/d' -e '/<url/d' \
		-e '/<\/description>/r '<(grep '<maintainer' package.xml) \
		-e '/<\/license>/r '<(grep '<url' package.xml) flash_llm_msgs/package.xml

clean:
	rm -rf $(VENV) models build install log dist flash_llm_msgs/build *.egg-info flash_llm_msgs/*.egg-info
	rm -f flash_llm_ros/_native*.so

$(DONE)/venv:
	@tools/check_prerequisites.sh '$(PYTHON)'
	$(call step,venv,Making $(VENV) with $(PYTHON),$(PYTHON) -m venv --clear $(VENV))
	@mkdir -p $(@D) && touch $@

$(DONE)/requirements: $(DONE)/venv requirements/build.txt requirements/ros.txt requirements/runtime.txt \
		requirements/convert.txt requirements/replay.txt requirements/serve.txt requirements/structured.txt \
		requirements/constraints.txt
	$(call step,ros,Installing ROS 2 and build tools (1 min),$(INSTALL) -r requirements/build.txt -r requirements/ros.txt)
	$(call step,runtime,Installing ONNX Runtime and the other libraries,$(INSTALL) -r requirements/runtime.txt -r requirements/convert.txt -r requirements/replay.txt -r requirements/serve.txt -r requirements/structured.txt)
	@mkdir -p $(@D) && touch $@

$(DONE)/messages: $(DONE)/requirements $(MESSAGES)
	$(call step,messages,Building flash_llm_msgs (1 to 2 min),$(PIP) install --no-build-isolation --no-deps --no-index --force-reinstall ./flash_llm_msgs)
	@mkdir -p $(@D) && touch $@

# Editable: changes of Python code need no new installation.
$(DONE)/package: $(DONE)/messages $(INSTALLED) $(NATIVE)
	$(call step,package,Building flash_llm_ros and its C++ core (1 min),$(PIP) install --verbose --no-build-isolation --no-deps --no-index --editable .)
	@mkdir -p $(@D) && touch $@

$(DONE)/test: $(DONE)/requirements requirements/test.txt
	$(call step,test,Installing the test tools (1 to 2 min),$(INSTALL) -r requirements/test.txt)
	@mkdir -p $(@D) && touch $@

$(GGUF): | $(DONE)/venv
	$(call step,model,Fetching the model (98 MB),$(BIN)/python tools/fetch_demo_model.py $@)

$(STORE)/manifest.yaml: $(GGUF) $(CONVERTER) | $(DONE)/package
	@echo 'Converting the model to a flash store (10 s)'
	@$(BIN)/flash_llm convert --replace $(GGUF) $(STORE)
	@mkdir -p $(@D) && touch $@

$(STORE_OF_relu)/manifest.yaml: $(GGUF) $(RELU_FFN) $(CONVERTER) | $(DONE)/package
	@echo 'Converting the ReLU model to a flash store (1 min)'
	@$(BIN)/flash_llm convert --replace --ffn $(RELU_FFN) $(GGUF) $(STORE_OF_relu)
	@mkdir -p $(@D) && touch $@

$(STORE_OF_experts)/manifest.yaml: $(GGUF) $(CONVERTER) bench/experts/upcycled.py | $(DONE)/package
	@echo 'Making the model with 16 experts a layer (1.4 GB, 1 min)'
	@$(BIN)/python -m bench.experts.upcycled $(GGUF) $(STORE_OF_experts)
	@mkdir -p $(@D) && touch $@
