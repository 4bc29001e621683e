.PHONY: check test models sbom

check:  ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

test:  ## all tests, offline, in two processes of one thread each
	OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal

models:  ## the tables of docs/models.md and README.md and the picture, from the manifest
	python -m tests.helpers.models_page

sbom:  ## a software bill of materials (CycloneDX) of the environment: pip install '.[release]' first
	cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible -o sbom.json "$$(command -v python)"
