# The commands of this project. Everything they install, start and write is below .local/ (LOCAL_DIR moves it), except
# packages, which they install by apt when they are missing.

.PHONY: help demo stop clean-local test check test-notebook test-compose soak bench

help:
	@echo 'make demo         the whole pipeline on this machine, on sample data, without an AWS account'
	@echo 'make stop         ends what the demo started; the data stays'
	@echo 'make clean-local  ends it and deletes its data'
	@echo 'make test         formatting, lints, documentation, the demo, and all tests'
	@echo 'make test-notebook  executes docs/confirm_load.ipynb on what the demo loaded'
	@echo 'make test-compose   the containers of docker-compose.yml, under kills and restarts; needs Docker'
	@echo 'make soak         the line under kill -9 for SOAK_MINUTES (10), then hostile input for ten more'
	@echo 'make bench        what the way through the queues costs, against curl | psql (some 15 minutes)'

demo:
	@deploy/local/demo

stop:
	@deploy/local/demo stop

clean-local:
	@deploy/local/demo delete

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet

# The tests come last, so that the run ends with cargo's summary of them.
test:
	@deploy/local/setup
	$(MAKE) check
	deploy/local/test-deploy
	deploy/local/test-demo
	deploy/local/with-servers cargo test --workspace

# make test does the same in a demo of its own.
test-notebook: demo
	@deploy/local/test-notebook

# Apart from test, since it needs a Docker engine, and to compile everything once more for the images.
test-compose:
	@deploy/compose/test

# The report is .local/soak/report.md; testkit/src/bin/soak says what it does.
soak:
	@deploy/local/setup
	deploy/local/soak

# The report is .local/bench/report.md; testkit/src/bin/bench says what it measures, docs/benchmarks.md what came out.
bench:
	@deploy/local/setup
	deploy/local/bench
