# Every target sets up .venv first, once; repeated calls are quick.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
CONFIG := configs/surface_defects_tiny_plus.py
WEIGHTS := demo/surface_defects_tiny_plus.safetensors
DATA := $(or $(DETECTRON2_DATASETS),datasets)/surface_defects
OUT := output/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format types bench train-surface-defects train-surface-defects-plus train-neu-det train-neu-det-plus train-neu-det-retinanet train-neu-det-fcos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-28s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## make .venv with everything in it

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.14 found; install one, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 15) else f"error: {sys.executable} is Python {v[0]}.{v[1]}; 3.10 to 3.14 is needed: make PYTHON=/path/to/python")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.ready: $(VENV)/.python pyproject.toml setup.py constraints.txt salience_detr/cli/install_detectron2.py
	@echo "Installing the packages into $(VENV): a few minutes the first time"
	$(RUN) -m pip install --disable-pip-version-check --quiet --progress-bar on -c constraints.txt setuptools ninja torch torchvision
	$(RUN) -m pip install --disable-pip-version-check --quiet --progress-bar on -c constraints.txt -e '.[dev,onnx,web,track,video,sahi,fast-eval,compare]'
	$(RUN) salience_detr/cli/install_detectron2.py
	@touch $@

demo: setup ## evaluate the shipped weights, detect on images and on a video
	@$(RUN) tools/make_surface_defects.py --output $(DATA) --splits val
	@$(RUN) tools/make_demo_inputs.py --output $(OUT)/inputs --images $(DATA)/val
	@$(RUN) train_net.py --config-file $(CONFIG) --eval-only train.init_checkpoint=$(WEIGHTS) train.output_dir=$(OUT)/evaluation
	@$(RUN) demo/demo.py --config-file $(CONFIG) --weights $(WEIGHTS) --input $(OUT)/inputs --output $(OUT)/detections \
		--salience --json $(OUT)/predictions.json
	@echo
	@echo "Average precision    $(OUT)/evaluation/log.txt (table above)"
	@echo "Annotated images   $(OUT)/detections/*.jpg, salience beside them as *_salience.jpg"
	@echo "Annotated video      $(OUT)/detections/conveyor.mp4"
	@echo "Detections as JSON   $(OUT)/predictions.json"

test: setup ## run the tests
	$(RUN) -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadgroup

test-slow: setup ## run the long tests
	$(RUN) -m pytest -q -m slow

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## parameters, GMACs, time and memory of the operator, of the model, and of other detectors
	$(RUN) tools/analyze_model.py --config-file configs/salience_detr_r50_4scale_12ep.py
	$(RUN) tools/benchmark_op.py
	$(RUN) tools/benchmark.py --operator compiled reference --modes eager training --batch-sizes 1 --repeats 3
	$(RUN) tools/benchmark.py --batch-sizes 1 2 --repeats 3 --compare all

train-surface-defects: setup ## train surface_defects_tiny again, on generated images
	$(RUN) tools/make_surface_defects.py --output $(DATA)
	$(call train,surface_defects_tiny)
	$(RUN) tools/convert_checkpoint.py --half output/surface_defects_tiny/model_best.pth demo/surface_defects_tiny.safetensors

train-surface-defects-plus: setup ## the same with surface_defects_tiny_plus, in two stages
	$(RUN) tools/make_surface_defects.py --output $(DATA)
	$(call train,surface_defects_tiny_plus_stage1)
	$(call train,surface_defects_tiny_plus)
	$(RUN) tools/convert_checkpoint.py --half output/surface_defects_tiny_plus/model_final.pth \
		demo/surface_defects_tiny_plus.safetensors --config-file surface_defects_tiny_plus

train-neu-det: setup ## train neu_det_r18 again, on the photographs in NEU_DET=FOLDER
	$(call train_on_neu_det,neu_det_r18)

train-neu-det-plus: setup ## the same with neu_det_r18_plus: two stages, the second by two seeds, and the mean of all
	$(call train_on_neu_det,neu_det_r18_plus_stage1)
	$(call train_on_neu_det,neu_det_r18_plus)
	$(call train_on_neu_det,neu_det_r18_plus,_seed43,train.seed=43)
	$(RUN) tools/convert_checkpoint.py --half output/neu_det_r18_plus/model_final.pth demo/neu_det_r18_plus.safetensors \
		--average-with output/neu_det_r18_plus_seed43/model_final.pth output/neu_det_r18_plus_stage1/model_final.pth \
		--config-file neu_det_r18_plus

train-neu-det-retinanet: setup ## the same with RetinaNet
	$(call train_on_neu_det,neu_det_retinanet_r18)

train-neu-det-fcos: setup ## the same with FCOS
	$(call train_on_neu_det,neu_det_fcos_r18)

# Both: $(1) a config, $(2) an ending of its output folder, $(3) overrides.
define train_on_neu_det
	@test -f "$(NEU_DET)/annotations/instances_train.json" || { echo "error: NEU_DET is '$(NEU_DET)', without annotations/instances_train.json in it; say make $@ NEU_DET=FOLDER"; exit 1; }
	NEU_DET="$(NEU_DET)" $(call train,$(1),$(2),$(3))
endef

# A training ends with its evaluation; the next call goes on with one that was stopped.
define train
	$(RUN) train_net.py --config-file configs/$(1).py --resume train.output_dir=output/$(1)$(2) $(3)
	@test -f output/$(1)$(2)/model_final.pth || { echo "the training was stopped; make $@ goes on with it"; exit 1; }
endef

clean: ## delete .venv and what runs have written
	rm -rf $(VENV) output build salience_detr/_operator *.egg-info .pytest_cache .mypy_cache .ruff_cache
