-- Each row with the run that loaded it. The column _batch has the number of the run and the first row of the batch.
select
    visits.country_code,
    visits.date,
    visits.visits,
    runs.run_id,
    runs.run_no,
    etl.first_row(visits._batch) as batch_first_row,
    runs.query_execution_id,
    runs.requested_at,
    runs.finished_at as loaded_at
from {{ source('targets', 'visits') }} as visits
-- Left, so that a row without a run is found by the test of run_id, and not lost here.
left join {{ source('etl', 'runs') }} as runs
    on runs.run_no = etl.run_no(visits._batch)
