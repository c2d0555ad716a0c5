"""Loads an Athena query into PostgreSQL, a day a partition: a Dagster asset around the command etl. Dagster 1.13.

    dagster dev -f athena_to_postgres.py         # needs dagster-webserver

The process needs `etl` in its PATH, and ETL_DATABASE_URL, ETL_AMQP_URL and ETL_JOBS in its environment; no access to AWS.

- The run's name has the day, so a partition that is tried again continues the run of its day and loads nothing twice. A run
  that failed or was cancelled is retried under its name; a completed one is done.
- To load a partition again, materialize it with the tag etl/suffix, such as .2: it gives the run another name.
- A step that is terminated does not end its run; `etl cancel RUN` does.
"""

import json
import subprocess

import dagster as dg

JOB = "visits"
COUNTS = (
    "run_no", "rows_extracted", "rows_loaded", "rows_deduplicated", "rows_rejected", "rows_dropped", "bytes_scanned",
)  # fmt: skip

days = dg.DailyPartitionsDefinition(start_date="2018-04-01")


def etl(context, *arguments):
    """Runs etl, with its progress in the step's log: its exit code and its answer.

    Standard error is read first, to its end: standard output is one document at the end, which a pipe holds.
    """
    context.log.info(f"etl {' '.join(arguments)}")
    process = subprocess.Popen(["etl", *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            context.log.info(line.rstrip())
        output = process.stdout.read()
        return process.wait(), json.loads(output or "{}")
    finally:
        # The step was terminated.
        if process.poll() is None:
            process.terminate()


def run_name(context, day):
    return f"{JOB}-{day.replace('-', '')}{context.run.tags.get('etl/suffix', '')}"


@dg.asset(
    name=JOB,
    partitions_def=days,
    retry_policy=dg.RetryPolicy(max_retries=3, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
    kinds={"postgres"},
)
def visits(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The table visits: the day's rows, proven complete by the ledger."""
    day = context.partition_key
    run = run_name(context, day)
    code, ended = etl(
        context, "run", JOB, "--set", f"day={day}", "--run-id", run, "--retry", "--follow", "--wait-timeout", "50m",
    )  # fmt: skip
    if code:
        # 1: failed, or not true, such as a broker that is away. 2: a wrong command, which is not tried again.
        why = ended.get("error") or ended.get("failure") or ended.get("held_because") or f"{ended.get('state')}"
        raise dg.Failure(f"{run}: {why}", metadata={"exit_code": code}, allow_retries=code != 2)
    # Dagster plots the numbers by partition. bytes_scanned is null where Athena did not say.
    counts = {key: ended[key] for key in COUNTS if ended[key] is not None}
    return dg.MaterializeResult(metadata={"run": run, "dagster/partition_row_count": ended["rows_loaded"], **counts})


@dg.asset_check(asset=visits)
def balances(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Every row that Athena returned is loaded, rejected or dropped: of the partition's run, or by itself of all runs."""
    day = context.run.tags.get("dagster/partition")
    code, answer = etl(context, "reconcile", *([run_name(context, day)] if day else []))
    proofs = answer if isinstance(answer, list) else [answer]
    # Without an answer, nothing is known: the database is away.
    if any("error" in proof for proof in proofs):
        raise dg.Failure(proofs[0]["error"])
    metadata = {proof["run_id"]: proof["verdict"] for proof in proofs if day or not proof["ok"]}
    return dg.AssetCheckResult(passed=code == 0, metadata=metadata)


load_days = dg.define_asset_job("load_visits", selection=dg.AssetSelection.assets(visits), partitions_def=days)
# At 03:10 the partition of yesterday.
every_day = dg.build_schedule_from_partitioned_job(load_days, hour_of_day=3, minute_of_hour=10)

defs = dg.Definitions(assets=[visits], asset_checks=[balances], jobs=[load_days], schedules=[every_day])
