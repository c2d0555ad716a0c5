"""Materializes the asset of examples/dagster for a day, in this process: its counts, its check, and a wrong command.

    python dagster_asset.py DAY ROWS        ROWS is what the table must have of the day
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "dagster"))

import dagster as dg  # noqa: E402
from athena_to_postgres import balances, visits  # noqa: E402

day, rows = sys.argv[1], int(sys.argv[2])
with dg.DagsterInstance.ephemeral() as instance:
    for attempt in ("first", "second"):
        done = dg.materialize([visits, balances], partition_key=day, instance=instance)
        (made,) = done.asset_materializations_for_node("visits")
        found = {key: value.value for key, value in made.metadata.items()}
        (check,) = done.get_asset_check_evaluations()
        assert done.success and check.passed, check
        assert found["rows_extracted"] == found["rows_loaded"] + found["rows_rejected"] == rows, found
        assert attempt == "first" or found["run_no"] == number, "the second attempt is another run"
        number = found["run_no"]
        if attempt == "first":
            print(f"dagster: visits of {day}: {found}; balances: {'passed' if check.passed else 'failed'}")

    # A wrong command is not tried again.
    os.environ["ETL_JOBS"] = str(Path(__file__).resolve().parent)
    done = dg.materialize([visits], partition_key=day, instance=instance, raise_on_error=False)
    retries = [event for event in done.all_events if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert not done.success and not retries, retries
    (failed,) = done.get_step_failure_events()
    print(f"dagster: a wrong command: {failed.step_failure_data.user_failure_data.description}")
