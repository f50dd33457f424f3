# make all: every claim about BERT, RoBERTa and DistilBERT put to the test; ends with the verdicts.
# make models: a larger BERT, RoBERTa, DistilBERT and DistilRoBERTa, side by side in a table.
# Every target goes on where it was stopped and does not repeat what is done.
#
#   make all CORPUS=my.txt NAME=my      on a text of your own (.txt, .gz, .xz or a folder)
#   make all CORPUS=my.txt VOCAB=1000   with a smaller vocabulary, for a small text
#   make all PY=python3                 without a virtual environment, on a machine that has torch
#   make all GRID=full NAME=full        the published comparison: many hours, and a larger teacher
#   make all CLAIMS="--only masking"    with any flag of `python -m lab compare`
#   make models FLAGS="--seed 1" RUNS=runs/seed1    with any flag that the scripts share

PYTHON ?= python3
PY     ?= .venv/bin/python
CORPUS ?= pydocs
PRESET ?= auto
GRID   ?= auto
RUNS   ?= runs/$(firstword $(subst ., ,$(notdir $(CORPUS:/=))))
FLAGS  ?=
# On a CPU, runs of one thread side by side do more than one run of many, and a run of one thread
# gives the same numbers whatever the machine has. A GPU takes one of the larger models at a time;
# how many of the claims' runs, compare knows.
JOBS   ?=
MODELS_JOBS = $(or $(JOBS),$(if $(shell command -v nvidia-smi),1,$(shell getconf _NPROCESSORS_ONLN)))
export OMP_NUM_THREADS = 1
export PYTHONPATH := $(CURDIR)
ifneq ($(MODELS_JOBS),1)
export MINIBERT_PLAIN = 1  # lines instead of progress bars, which would overwrite each other
endif

RECIPE   = --corpus $(CORPUS) --preset $(PRESET) $(FLAGS)
SIZE     = $(if $(VOCAB),--vocab-size $(VOCAB))
UNTAUGHT = --init random --alpha-kl 0 --alpha-cos 0
STUDENTS = distilbert distilbert-untaught distilroberta distilroberta-untaught
MODELS   = bert roberta $(STUDENTS)
# What every model is fine-tuned on and scored by. These tasks are made of pydocs; the larger models
# of a GPU may well take TASKS="sst2 mrpc cola".
TASKS   ?= $(if $(filter-out pydocs,$(CORPUS)),,library word-order halves)
TASK_FLAGS ?=

.PHONY: all models setup data $(MODELS) $(MODELS:%=%-scores) \
        test test-training test-others parity lint faults notebook smoke clean

# The claims are the laboratory's. Where it was deleted, `make` trains the models.
all: $(if $(wildcard lab),compare,models)
-include lab/Makefile

# Larger models than the claims' arms, one of each.
models: setup
	@$(MAKE) --no-print-directory data
	@$(MAKE) --no-print-directory -j$(MODELS_JOBS) $(MODELS:%=%-scores)
	@$(PY) -m minibert table $(addprefix $(RUNS)/,$(MODELS))

setup: $(if $(filter .venv/bin/python,$(PY)),.venv/ready)

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed; make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch .venv/ready

data: setup
	@$(PY) -m minibert prepare --corpus $(CORPUS) --preset $(PRESET) $(SIZE)

bert roberta: setup
	@$(PY) train_$@.py $(RECIPE) $(SIZE) --out $(RUNS)/$@

distilbert: bert
	@$(PY) distill.py --teacher $(RUNS)/bert $(RECIPE) --out $(RUNS)/$@

distilroberta: roberta
	@$(PY) distill.py --teacher $(RUNS)/roberta $(RECIPE) --out $(RUNS)/$@

distilbert-untaught: bert
	@$(PY) distill.py --teacher $(RUNS)/bert $(UNTAUGHT) $(RECIPE) --out $(RUNS)/$@

distilroberta-untaught: roberta
	@$(PY) distill.py --teacher $(RUNS)/roberta $(UNTAUGHT) $(RECIPE) --out $(RUNS)/$@

$(MODELS:%=%-scores): %-scores: %
	@for task in $(TASKS); do \
		$(PY) finetune.py $(RUNS)/$* --task $$task $(TASK_FLAGS) || exit $$?; \
	done

# In two halves side by side: the tests that train, and the others.
#   make test PYTEST="-k mask"               the tests with a word in their names
#   make test PYTEST="-m 'not promises'"     without those that hold what the documents say
PYTEST ?=
TRAINING_TESTS = tests/test_training.py tests/test_distributed.py tests/test_table.py \
                 tests/test_walk.py tests/test_notebook.py \
                 $(wildcard $(addprefix lab/tests/test_,compare.py exercises.py readme.py doctor.py))
test: setup
	@$(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),-Otarget) \
		test-training test-others

test-training: setup
	$(PY) -m pytest $(TRAINING_TESTS) $(PYTEST)

test-others: setup
	$(PY) -m pytest $(TRAINING_TESTS:%=--ignore=%) $(PYTEST)

# Our encoder against `transformers`; it needs packages that nothing else here needs.
parity: setup $(if $(filter .venv/bin/python,$(PY)),.venv/parity)
	HF_HUB_OFFLINE=1 $(PY) -m pytest -o addopts="-q" tests/parity

.venv/parity: .venv/ready requirements-hf.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-hf.txt
	touch .venv/parity

# Style, names that are not used, and types on every public function.
lint: setup $(if $(filter .venv/bin/python,$(PY)),.venv/check)
	$(PY) -m ruff check .

# A quarter of an hour: killed processes and hostile input.
FAULTS ?= tests/faults
faults: setup $(if $(filter .venv/bin/python,$(PY)),.venv/check)
	$(PY) -m pytest -o addopts="-q" --durations=5 $(FAULTS)

# The cells of docs/lesson.ipynb in a terminal, where there is no Jupyter: three minutes.
notebook: setup
	@$(PY) tests/notebook.py

.venv/check: .venv/ready requirements-check.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-check.txt
	touch .venv/check

# What `make models` does, at a toy budget: whether it works, not how well.
smoke:
	@$(MAKE) --no-print-directory models RUNS=runs/smoke PRESET=tiny \
		FLAGS="--steps 20 --log-every 10 --eval-every 20 --checkpoint-every 10 --eval-targets 4000" \
		TASKS=library TASK_FLAGS="--rows 24"
	@$(if $(wildcard lab),$(MAKE) --no-print-directory smoke-claims)

clean:
	rm -rf runs data/prepared data/tasks
