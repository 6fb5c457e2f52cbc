PYTHON ?= python3
UV := .venv/tools/bin/uv
export UV_PYTHON_DOWNLOADS := never# the interpreter is the user's, also in every environment below

# Where Python may not write byte code, each process would compile the libraries anew: 10 s more for training-hub.
ifdef PYTHONDONTWRITEBYTECODE
export UV_COMPILE_BYTECODE := 1
endif

N ?= 100
SEED ?= 1

.PHONY: help environments test demo bench soak cluster cluster-down clean
help:
	@echo "make demo    fine-tune a small model from a DAG on this machine, under 10 minutes on 2 cores; ALGORITHM=lora, sft, osft"
	@echo "make test    every check and test; scripts/test PART... runs some: lint types layers unit airflow floor runner cluster faults"
	@echo "make bench   what importing the operators, reading data, the runner around training-hub, and waiting cost"
	@echo "make soak    N=1000 SEED=1: so many tasks while requests fail and processes die (Linux, as root); docs/soak.md"
	@echo "make cluster start a real Kubernetes with the Trainer on this machine (Linux, as root); make cluster-down ends it"
	@echo "make clean   remove what the above made"
	@echo
	@echo "All need Python >= 3.11 (PYTHON=$(PYTHON)) and a package index. The environments are made in .venv, about 7 GB;"
	@echo "UV_TORCH_BACKEND=cpu takes PyTorch's CPU wheels from its own index instead of the CUDA ones: about 2 GB."

test:
	@scripts/test

demo: .venv/airflow/.done .venv/train/.done
	ALGORITHM=$(ALGORITHM) AIRFLOW_PYTHON=$(CURDIR)/.venv/airflow/bin/python TRAIN_PYTHON=$(CURDIR)/.venv/train/bin/python UV=$(CURDIR)/$(UV) scripts/demo

bench: .venv/airflow/.done .venv/train/.done
	@missed=0; for script in bench/*.py; do \
	  echo "== $$script"; \
	  FINETUNE_TRAIN_PYTHON=$(CURDIR)/.venv/train/bin/python .venv/airflow/bin/python $$script || missed=1; \
	done; exit $$missed

soak: .venv/airflow/.done .venv/train/.done
	@FINETUNE_TRAIN_PYTHON=$(CURDIR)/.venv/train/bin/python .venv/airflow/bin/python -m tests.faults.soak --tasks $(N) --seed $(SEED) --keep .soak

cluster: .venv/airflow/.done .venv/train/.done
	@FINETUNE_TRAIN_PYTHON=$(CURDIR)/.venv/train/bin/python .venv/airflow/bin/python -m tests.cluster.bed up

cluster-down: .venv/airflow/.done
	@.venv/airflow/bin/python -m tests.cluster.bed down

clean:
	rm -rf .venv .demo .soak dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

environments: .venv/airflow/.done .venv/airflow-floor/.done .venv/train/.done

# `.done` is touched last, so an interrupted installation is begun again.
.venv/tools/.done:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv/tools
	.venv/tools/bin/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

# The newest Airflow, and the tools that check the code.
.venv/airflow/.done: pyproject.toml .venv/tools/.done
	$(UV) venv --quiet --clear --python .venv/tools/bin/python .venv/airflow
	$(UV) pip install --quiet --python .venv/airflow --editable . --group dev
	@touch $@

# The oldest Airflow and Kubernetes packages that the project allows.
.venv/airflow-floor/.done: pyproject.toml tests/constraints-floor.txt .venv/tools/.done
	$(UV) venv --quiet --clear --python .venv/tools/bin/python .venv/airflow-floor
	$(UV) pip install --quiet --python .venv/airflow-floor --constraints tests/constraints-floor.txt --editable . --group test
	@touch $@

# training-hub, without Airflow and without this project: the runner comes as a file.
.venv/train/.done: pyproject.toml .venv/tools/.done
	$(UV) venv --quiet --clear --python .venv/tools/bin/python .venv/train
	$(UV) pip install --quiet --python .venv/train --group train
	@touch $@
