-- Every completed run has all of its batches in the ledger, and each row that Athena returned is loaded, rejected or dropped.
select run_id, batches, rows_expected, rows_extracted, rows_loaded, rows_rejected, rows_dropped
from {{ source('etl', 'run_balance') }}
where state = 'completed' and balanced is not true
