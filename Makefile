# The commands of this project. They install, start and write everything below .local/ (LOCAL_DIR moves it), except missing
# packages, which they install by apt.

.PHONY: help demo stop clean-local test test-all test-pooler check test-notebook test-examples test-compose dist test-dist soak bench

help:
	@echo 'make demo         the whole pipeline on this machine, on sample data, without an AWS account'
	@echo 'make stop         ends what the demo started; the data stays'
	@echo 'make clean-local  ends it and deletes its data'
	@echo 'make check        formatting, lints, documentation, and the licences and sources of dependencies'
	@echo 'make test         make check, deployment files, the demo, the commands of the documentation, and all tests'
	@echo 'make test-all     make test, and what takes longer: all tests behind a pooler and without an archive, 3 GiB for a locked target, a cluster of brokers, the soak'
	@echo 'make test-pooler  the tests that use PostgreSQL, with a PgBouncer in session mode in front of it'
	@echo 'make test-notebook  executes docs/confirm_load.ipynb in the demo'
	@echo 'make test-examples   the examples, with Airflow, Dagster and dbt from PyPI'
	@echo 'make test-compose   the containers of docker-compose.yml, under kills and restarts; needs Docker'
	@echo 'make dist         the programs for any Linux, Debian packages, bills of materials and checksums (docs/packages.md)'
	@echo 'make test-dist    installs the packages on a bare Debian below .local/, and runs them there; needs root'
	@echo 'make soak         the pipeline under kill -9 for SOAK_MINUTES (10), then hostile input for ten more'
	@echo 'make bench        the cost of the pipeline, compared with curl | psql (some 15 minutes)'

demo:
	@deploy/local/demo

stop:
	@deploy/local/demo stop

clean-local:
	@deploy/local/demo delete

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test cluster --test volume -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet
	deploy/local/deny

# What concerns the archive and cancellations runs without an archive, too; ETL_TEST_ARCHIVE is the ETL_ARCHIVE of every program.
# The tests come last, so that the output ends with cargo's summary. Each step is of the whole workspace: of a part, cargo
# compiles the dependencies again, with the features that this part needs.
test:
	@deploy/local/setup
	$(MAKE) check
	deploy/local/test-deploy
	DEMO_BUILD='cargo test --quiet --workspace --no-run' deploy/local/test-demo
	ETL_TEST_ARCHIVE=off deploy/local/with-servers cargo test --workspace --test it --test faults -- archive cancel replay broker::operator operators:: stopping
	deploy/local/with-servers cargo test --workspace

# Also what takes longer. Each cluster has three brokers, so that its tests take turns.
test-all: test
	$(MAKE) test-pooler
	ETL_TEST_ARCHIVE=off deploy/local/with-servers cargo test --workspace
	deploy/local/with-servers cargo test -p etl --test volume
	deploy/local/with-servers cargo test -p etl --test cluster -- --test-threads 1
	deploy/local/soak

# deploy/local/with-servers says what goes through the pooler, and what does not.
test-pooler:
	@deploy/local/setup
	cargo build --workspace --bins
	ETL_POOLER=session deploy/local/with-servers cargo test -p ledger -p loader -p etl

# make test does the same in a demo of its own.
test-notebook: demo
	@deploy/local/test-notebook

# In a demo of its own.
test-examples:
	@examples/test

# Not a part of test, since it needs Docker, and compiles everything once more for the images.
test-compose:
	@deploy/compose/test

dist:
	@deploy/dist/build

test-dist: dist
	@deploy/dist/test

# The report is .local/soak/report.md; benchmarks/src/bin/soak/main.rs describes it.
soak:
	@deploy/local/setup
	deploy/local/soak

# The report is .local/bench/report.md; benchmarks/src/bin/bench/main.rs describes it, docs/benchmarks.md has results.
bench:
	@deploy/local/setup
	deploy/local/bench
