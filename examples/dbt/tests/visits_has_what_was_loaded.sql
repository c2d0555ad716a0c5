-- The table has as many rows of a run as the ledger says: nobody deleted or added some afterwards. visits is replaced day by day,
-- so this holds for the latest run of each day; in mode append it holds for every completed run, without the distinct on. In the
-- modes upsert and insert_only, rows of other runs overwrite them or stay. It reads the whole table.
with latest as (
    select distinct on (target_window) run_no
    from {{ source('etl', 'runs') }}
    where job = 'visits' and state = 'completed'
    order by target_window, run_no desc
),

in_table as (
    select run_no, count(*) as row_count
    from {{ ref('stg_visits') }}
    group by run_no
)

select balance.run_id, balance.rows_loaded, coalesce(in_table.row_count, 0) as rows_in_table
from latest
inner join {{ source('etl', 'run_balance') }} as balance on balance.run_no = latest.run_no
left join in_table on in_table.run_no = latest.run_no
where balance.rows_loaded <> coalesce(in_table.row_count, 0)
