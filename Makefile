# make demo   distil the bundled teachers into a light student, score it, predict with it
# make test   the test suite
# make bench  time the kernels
# make lint   ruff, and mypy over the package
# make clean  remove what these made, except the virtual environment

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   := demo
SEED   := 1000000

.PHONY: demo test bench lint clean

demo: $(VENV)/.native
	rm -rf $(DEMO)
	mkdir -p $(DEMO)/images
	$(BIN)/distilldepth distill --teachers dav2,genpercept --preset demo --offline --out $(DEMO)/run --overwrite
	@echo; echo "The student before training, the student after it, and the best guess without looking at the image:"
	$(BIN)/python -c "from distilldepth.models import create_student, save_model; \
	save_model(create_student('light-mini', seed=0), '$(DEMO)/untrained')"
	for model in $(DEMO)/untrained $(DEMO)/run baseline:ramp; do \
	    $(BIN)/distilldepth evaluate --model $$model --data scenes:100 --offline || exit 1; \
	done
	$(BIN)/python -c "from PIL import Image; from distilldepth.scenes import render_scene; \
	[Image.fromarray(render_scene(seed).image).save(f'$(DEMO)/images/scene-{seed}.png') for seed in range($(SEED), $(SEED) + 8)]"
	$(BIN)/distilldepth predict $(DEMO)/images --model $(DEMO)/run --out $(DEMO)/depth --as png16,color --offline
	@echo; echo "Report with curves and pictures:  $(DEMO)/run/report.html"
	@echo "Images, and the depth predicted:  $(DEMO)/images  $(DEMO)/depth"
	@echo "The student, for --model:         $(DEMO)/run"

test: $(VENV)/.installed-test $(VENV)/.native
	$(BIN)/python -m pytest -q

bench: $(VENV)/.native
	$(BIN)/distilldepth bench

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	rm -rf build/lint && mkdir -p build/lint/distilldepth
	ln -s $(CURDIR)/distilldepth/* $(CURDIR)/cli build/lint/distilldepth
	cd build/lint && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p distilldepth

clean:
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "distilldepth needs Python 3.10 or later, this is %d.%d; say make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# A stamp is older than pyproject.toml or constraints.txt when there is something to install. The interpreter is an
# order-only prerequisite: it is a link to the system's, whose date says nothing.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

# The CPU library compiles in half a minute, once. Everything works without it, only slower, so make goes on. The CUDA
# library takes minutes: `distilldepth doctor --build` compiles it, and so does DISTILLDEPTH_BUILD=1 here, where a
# failure counts.
$(VENV)/.native: $(wildcard csrc/*) $(wildcard distilldepth/native/*.py) | $(VENV)/.installed
	$(BIN)/distilldepth doctor --build $(if $(filter 1,$(DISTILLDEPTH_BUILD)),all,cpu) >/dev/null \
	    || test '$(DISTILLDEPTH_BUILD)' != 1
	touch $@
