"""What the DAG of examples/airflow makes of etl's exit codes, and that it retries a run that failed.

    python airflow_codes.py DAY        in a demo, with ETL_JOBS at examples/jobs
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "airflow"))

from athena_to_postgres import AirflowException, AirflowFailException, etl  # noqa: E402


def raised(*arguments):
    try:
        etl(*arguments)
    except AirflowException as error:
        return error
    raise SystemExit(f"etl {' '.join(arguments)} was no failure")


day, jobs = sys.argv[1], Path(os.environ["ETL_JOBS"])
load = ("run", "visits", "--set", f"day={day}", "--run-id", f"visits-{day}", "--retry", "--follow", "--wait-timeout", "1m")

wrong = raised("run", "no_such_job", "--follow")
assert type(wrong) is AirflowFailException, wrong
print(f"airflow: a wrong command fails: {wrong}")

with tempfile.TemporaryDirectory() as broken:
    os.environ["ETL_JOBS"] = broken
    shutil.copytree(jobs, broken, dirs_exist_ok=True)
    sql = Path(broken, "visits.sql")
    sql.write_text(sql.read_text().replace("vod_clickstream", "no_such_table"))
    failed = raised(*load)
assert type(failed) is AirflowException and "no_such_table" in str(failed), failed
print(f"airflow: a run that failed is tried again: {str(failed).splitlines()[0]}")
os.environ["ETL_JOBS"] = str(jobs)
run = etl(*load)
assert run["state"] == "completed" and run["balanced"] and run["run_id"] == f"visits-{day}", run
print(f"airflow: and goes on under its name: {run['run_id']} is {run['state']}, {run['rows_loaded']} rows")

os.environ["ETL_DATABASE_URL"] = "postgres://etl@127.0.0.1:1/etl"
away = raised("status", f"visits-{day}")
assert type(away) is AirflowException, away
print(f"airflow: a database that is away is tried again: {away}")
