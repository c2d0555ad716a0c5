# The commands of this project. Everything they install, start and write is below .local/ (LOCAL_DIR moves it), except
# packages, which they install by apt when they are missing.

.PHONY: help demo stop clean-local test check test-notebook soak

help:
	@echo 'make demo         the whole pipeline on this machine, on sample data, without an AWS account'
	@echo 'make stop         ends what the demo started; the data stays'
	@echo 'make clean-local  ends it and deletes its data'
	@echo 'make test         formatting, lints, documentation, the demo, and all tests'
	@echo 'make test-notebook  executes docs/confirm_load.ipynb on what the demo loaded'
	@echo 'make soak         the line under kill -9 for SOAK_MINUTES (10), then hostile input for ten more'

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

# The report is .local/soak/report.md; testkit/src/bin/soak says what it does.
soak:
	@deploy/local/setup
	deploy/local/soak
