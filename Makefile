.PHONY: check test table

check:  ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

test:  ## everything, offline, in two processes of one thread each
	OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal

table:  ## the model table of the README, from the manifest
	python -m isanet.cli list --markdown
