-- A message that no service could process blocks its run until a person acts: etl dead list.
select id, run_id, job, stage, reason, received_at
from {{ source('etl', 'dead_letters') }}
where resolved_at is null
