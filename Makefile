# The commands of every day; `make test` is what must pass. PYTEST takes more arguments: make test PYTEST="-k plan".
PYTEST ?=

.PHONY: lint types test-fast test

lint:
	ruff check .
	ruff format --check .

types:
	mypy
	mypy benchmarks

# Under a minute: the house, the options, the mathematics and the data, without a run from end to end.
FAST = tests/test_structure.py tests/config tests/errors tests/objectives/test_losses.py tests/objectives/test_spaces.py \
    tests/denoiser/test_denoiser.py tests/data/test_images.py tests/data/test_augment.py tests/training/test_plan.py \
    tests/training/test_progress.py tests/training/test_compute_loss.py

test-fast:
	python -m pytest -n 2 -m "not slow" $(FAST) $(PYTEST)

test:
	python -m pytest -n 2 $(PYTEST)
