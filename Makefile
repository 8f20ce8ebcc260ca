# Every target makes the environment .venv in this clone when it is missing or older than
# pyproject.toml, and uses it otherwise.

PYTHON ?= python3
READY := .venv/ready

# What a step of training frees is kept for the next one: glibc would give it back to the system
# and ask for it again, page by page. Other libraries ignore this.
export MALLOC_TRIM_THRESHOLD_ := 4294967296
export MALLOC_MMAP_THRESHOLD_ := 33554432

# Jupyter asks for this in containers, where everybody is root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help run figures check test test-slow test-browser lint lab screenshots notebooks clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(READY) ## The main job: train a teacher on digits, distil it with BTD and TRACT, compare
	.venv/bin/tract quickstart

FORMAT ?= png
figures: export FIGURE_FORMAT = $(FORMAT)
figures: $(READY) ## Draw figures and tables again from figures/*.csv; FORMAT=pdf for print
	.venv/bin/tract run notebooks/06_figures.ipynb .test/06_figures.ipynb
	.venv/bin/tract run notebooks/07_beyond_the_paper.ipynb .test/07_beyond_the_paper.ipynb \
		-p figures figures
	.venv/bin/tract run notebooks/08_fashion_mnist.ipynb .test/08_fashion_mnist.ipynb \
		-p figures figures
	rm -rf .test

check: $(READY) lint ## Style and the fast tests, before every commit
	.venv/bin/python -m pytest tests/core tests/base tests/networks tests/test_house.py $(TWO)

# Notebooks that start together would each count all cores as idle, and wait for each other.
test test-slow: export OMP_NUM_THREADS = 1
test: $(READY) lint ## All tests but the storms, and all notebooks in a copy of notebooks/ and figures/
	rm -rf .test
	mkdir .test
	cp -r notebooks figures .test
	.venv/bin/python -m pytest tests -m "not slow and not browser" --durations=8 $(TWO)
	$(MAKE) --no-print-directory -j2 $(NBVAL)
	rm -rf .test

test-slow: $(READY) ## The storms: kills, full disks, mutations of files, fuzzed options
	.venv/bin/python -m pytest tests -m slow --durations=8 $(TWO)

test-browser: $(READY) ## The notebooks in JupyterLab, driven in Chromium
	.venv/bin/python -m pytest tests -m browser

TWO := -n logical --maxprocesses 4 --dist loadfile

# Two notebooks at a time, of one thread each. 02 and 03 read what 01 leaves; 06 to 08 are executed
# by tests/test_documents.py.
NBVAL := $(addprefix nbval-,01_teacher 04_edm_ve 03_tract 02_btd 00_two_dimensions 05_ablations)
.PHONY: $(NBVAL)
nbval-02_btd nbval-03_tract: nbval-01_teacher
$(NBVAL): nbval-%:
	.venv/bin/python -m pytest -p nbval_kernels --nbval-lax --durations=4 -p no:cacheprovider .test/notebooks/$*.ipynb

lint: $(READY) ## Style, as the tests require it
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# In copies, which are made once: what one tries there changes no committed notebook.
lab: $(READY) ## Open copies of the notebooks in JupyterLab, for this machine only
	mkdir -p lab runs data
	cp -Rn notebooks lab || true
	ln -sfn ../runs ../data ../figures lab
	.venv/bin/jupyter lab --ip=127.0.0.1 $(AS_ROOT) lab/notebooks/00_two_dimensions.ipynb

screenshots: $(READY) ## Take the README's pictures of JupyterLab again, after `make run`
	.venv/bin/python tests/screenshots.py

notebooks: $(READY) ## Execute all notebooks again, in place, as they are committed
	.venv/bin/tract run --in-place notebooks/*.ipynb

clean: ## Remove the environment and what tests left; runs/ stays
	rm -rf .venv .test .screenshots .pytest_cache .ruff_cache *.egg-info

$(READY): pyproject.toml
	.venv/bin/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $(READY)
