"""Loads one day of an Athena query into PostgreSQL, every day: an Airflow DAG around the command etl. Airflow 2 and 3.

The worker needs `etl` in its PATH, ETL_DATABASE_URL, ETL_AMQP_URL and ETL_JOBS in its environment, and no access to AWS.

- The run's name has the day, so a task that is tried again, or cleared, continues the run of its day and loads nothing
  twice. A run that failed or was cancelled is retried under its name; a completed one is done.
- To load a day again, trigger the DAG for it with the parameter `suffix`: it gives the run another name.
- A task that is killed or times out does not end its run; `etl cancel RUN` does.
"""

import json
import logging
import subprocess
from datetime import datetime, timedelta, timezone

from airflow.timetables.interval import CronDataIntervalTimetable

try:  # Airflow 3
    from airflow.sdk import Param, dag, task
    from airflow.sdk.exceptions import AirflowException, AirflowFailException
except ImportError:
    from airflow.decorators import dag, task
    from airflow.exceptions import AirflowException, AirflowFailException
    from airflow.models.param import Param

JOB = "visits"
# What etl may take of the task's hour: it then ends by itself, and says how far the run is.
TIMEOUT, WAIT_TIMEOUT = timedelta(hours=1), "50m"
BALANCE = (
    "run_id", "run_no", "state", "balanced", "rows_extracted", "rows_loaded", "rows_deduplicated", "rows_rejected",
    "rows_dropped", "bytes_scanned",
)  # fmt: skip

log = logging.getLogger("airflow.task")


def etl(*arguments):
    """Runs etl, with its progress in the task's log, and returns its answer: the run.

    Exit code 1 (failed, or not true: the broker is away, or the run still open after the timeout) is a failure that Airflow
    tries again. 2 (a wrong command: no such job, no such parameter) is one that it does not: nothing changes by itself.
    Standard error is read first, to its end: standard output is one document at the end, which a pipe holds.
    """
    log.info("etl %s", " ".join(arguments))
    process = subprocess.Popen(["etl", *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            log.info("%s", line.rstrip())
        output = process.stdout.read()
        code = process.wait()
    finally:
        # The task timed out or was killed.
        if process.poll() is None:
            process.terminate()
    answer = json.loads(output or "{}")
    why = answer.get("error") or answer.get("failure") or answer.get("held_because") or f"{answer.get('state')}"
    if code == 2:
        raise AirflowFailException(why)
    if code:
        raise AirflowException(f"{why} (exit code {code})")
    return answer


@dag(
    # Today's run, at 03:10, has yesterday as its interval, and so as its ds: Airflow 3 would otherwise take today.
    schedule=CronDataIntervalTimetable("10 3 * * *", timezone="UTC"),
    start_date=datetime(2018, 4, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=4,
    params={"suffix": Param("", type="string", pattern=r"^(\.[A-Za-z0-9._-]+)?$", description="loads a day again: .2")},
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "execution_timeout": TIMEOUT},
    doc_md=__doc__,
    tags=["etl"],
)
def athena_to_postgres():
    @task
    def load(day, run):
        etl("run", JOB, "--set", f"day={day}", "--run-id", run, "--retry", "--follow", "--wait-timeout", WAIT_TIMEOUT)

    @task
    def balance(run):
        """The run's counts, as an XCom for the tasks behind this one."""
        status = etl("status", run)
        if not status["balanced"]:
            raise AirflowFailException(f"{run} does not balance: etl reconcile {run}")
        return {key: status[key] for key in BALANCE}

    name = JOB + "-{{ ds_nodash }}{{ params.suffix }}"
    load("{{ ds }}", name) >> balance(name)


athena_to_postgres()
