.PHONY: check test table

check:  ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

test:  ## everything, offline
	pytest -n 2 --dist worksteal

table:  ## the model table of the README, from the manifest
	python -m isanet.cli list --markdown
