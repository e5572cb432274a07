# The commands of every day; `make test` is what must pass. PYTEST takes more arguments: make test PYTEST="-k plan".
PYTEST ?=

.PHONY: lint types test-fast test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

# Under a minute: what one change is most likely to break.
test-fast:
	python -m pytest -n 2 -m "not slow" --ignore=tests/llava --ignore=tests/mllm --ignore=tests/miniature \
	    --ignore=tests/ablation $(PYTEST)

test:
	python -m pytest -n 2 $(PYTEST)
