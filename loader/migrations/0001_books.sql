-- The books: what was asked for, what arrived, what was refused and what nobody could handle.
--
-- Runs and batches are never pruned: a replay of a forgotten batch would load it twice.

CREATE TABLE etl.runs (
    run_id             text PRIMARY KEY CHECK (run_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    -- 39 bits: `_batch` keeps 24 of a bigint's 63 for the batch's place in the run.
    run_no             bigint GENERATED ALWAYS AS IDENTITY UNIQUE CHECK (run_no > 0 AND run_no < 549755813888),
    job                text NOT NULL,
    job_hash           text NOT NULL,
    job_spec           jsonb NOT NULL,
    parameters         jsonb NOT NULL DEFAULT '{}',
    sql                text NOT NULL,
    target_table       text NOT NULL,
    mode               text NOT NULL,
    state              text NOT NULL DEFAULT 'requested',
    generation         integer NOT NULL DEFAULT 0 CHECK (generation >= 0),
    query_execution_id text,
    result_id          text,
    batches_extracted  integer NOT NULL DEFAULT 0 CHECK (batches_extracted >= 0),
    rows_extracted     bigint NOT NULL DEFAULT 0 CHECK (rows_extracted >= 0),
    batches_expected   integer CHECK (batches_expected > 0),
    rows_expected      bigint CHECK (rows_expected >= 0),
    bytes_scanned      bigint CHECK (bytes_scanned >= 0),
    late_messages      bigint NOT NULL DEFAULT 0 CHECK (late_messages >= 0),
    failure            text,
    requested_at       timestamptz NOT NULL DEFAULT now(),
    started_at         timestamptz,
    extracted_at       timestamptz,
    finished_at        timestamptz,
    CONSTRAINT runs_state_known CHECK (state IN ('requested', 'running', 'completed', 'failed', 'cancelled')),
    CONSTRAINT runs_finished_when_terminal CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled'))),
    CONSTRAINT runs_failure_has_a_reason CHECK (state <> 'failed' OR failure IS NOT NULL),
    CONSTRAINT runs_expected_together CHECK ((batches_expected IS NULL) = (rows_expected IS NULL)),
    CONSTRAINT runs_completed_is_measured CHECK (state <> 'completed' OR batches_expected IS NOT NULL)
);

CREATE INDEX runs_open ON etl.runs (requested_at) WHERE state IN ('requested', 'running');
CREATE INDEX runs_of_job ON etl.runs (job, run_no DESC);

COMMENT ON TABLE etl.runs IS 'One row for each time that a job was asked for. Written by etl run before anything is sent; the loader keeps it up to date.';
COMMENT ON COLUMN etl.runs.run_id IS 'The run''s name, chosen by whoever asked for it. Asking twice for the same name is asking once.';
COMMENT ON COLUMN etl.runs.run_no IS 'Grows with each request. The upper bits of the target''s _batch: SELECT ... WHERE _batch >> 24 = run_no.';
COMMENT ON COLUMN etl.runs.job IS 'The job''s name.';
COMMENT ON COLUMN etl.runs.job_hash IS 'Hash of the job as it was at the time of the request, in hex.';
COMMENT ON COLUMN etl.runs.job_spec IS 'The job as it was at the time of the request.';
COMMENT ON COLUMN etl.runs.parameters IS 'The parameters and their values, as text.';
COMMENT ON COLUMN etl.runs.sql IS 'The SQL that Athena got, parameters filled in.';
COMMENT ON COLUMN etl.runs.target_table IS 'The table that the rows go to, with its schema.';
COMMENT ON COLUMN etl.runs.mode IS 'What a batch does to the target: append or upsert.';
COMMENT ON COLUMN etl.runs.state IS 'requested, running, then one of completed, failed, cancelled. The first of these three stays.';
COMMENT ON COLUMN etl.runs.generation IS 'The live generation: 0, and one more for each replay. Batches of an older one are stale.';
COMMENT ON COLUMN etl.runs.query_execution_id IS 'Athena''s id of the query.';
COMMENT ON COLUMN etl.runs.result_id IS 'Which result the batches are of: the execution id with the object''s ETag, or with pages. Set by the first batch; a batch of another result is refused.';
COMMENT ON COLUMN etl.runs.batches_extracted IS 'Batches that the extractor has published so far, as it reports.';
COMMENT ON COLUMN etl.runs.rows_extracted IS 'Rows that the extractor has published so far, as it reports.';
COMMENT ON COLUMN etl.runs.batches_expected IS 'Batches of the whole result; unknown until it was read to its end.';
COMMENT ON COLUMN etl.runs.rows_expected IS 'Rows of the whole result; unknown until it was read to its end.';
COMMENT ON COLUMN etl.runs.bytes_scanned IS 'Bytes that Athena scanned, which is what it charges for.';
COMMENT ON COLUMN etl.runs.late_messages IS 'Batches and events that arrived when the run was already over. They were acknowledged and changed nothing.';
COMMENT ON COLUMN etl.runs.failure IS 'Why the run failed, for a person.';
COMMENT ON COLUMN etl.runs.requested_at IS 'When etl run wrote this row.';
COMMENT ON COLUMN etl.runs.started_at IS 'When the loader learned that Athena has the query.';
COMMENT ON COLUMN etl.runs.extracted_at IS 'When the loader learned that the result was read to its end.';
COMMENT ON COLUMN etl.runs.finished_at IS 'When the run came to its terminal state.';

CREATE TABLE etl.batches (
    run_id         text NOT NULL REFERENCES etl.runs (run_id),
    generation     integer NOT NULL CHECK (generation >= 0),
    seq            integer NOT NULL CHECK (seq >= 0 AND seq < 16777216),
    content_hash   text NOT NULL,
    result_id      text NOT NULL,
    first_row      bigint NOT NULL CHECK (first_row >= 0),
    rows_extracted bigint NOT NULL CHECK (rows_extracted >= 0),
    rows_loaded    bigint NOT NULL CHECK (rows_loaded >= 0),
    rows_collapsed bigint NOT NULL DEFAULT 0 CHECK (rows_collapsed >= 0),
    rows_rejected  bigint NOT NULL DEFAULT 0 CHECK (rows_rejected >= 0),
    rows_dropped   bigint NOT NULL DEFAULT 0 CHECK (rows_dropped >= 0),
    loaded_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, generation, seq),
    CONSTRAINT batches_balance CHECK (rows_extracted = rows_loaded + rows_rejected + rows_dropped),
    CONSTRAINT batches_collapsed_were_loaded CHECK (rows_collapsed <= rows_loaded)
);

COMMENT ON TABLE etl.batches IS 'The ledger: one row a batch, written in the transaction that writes the batch''s rows. A batch that is here is in the target, and is never loaded again.';
COMMENT ON COLUMN etl.batches.run_id IS 'The run.';
COMMENT ON COLUMN etl.batches.generation IS 'The generation of the run that the batch was delivered in.';
COMMENT ON COLUMN etl.batches.seq IS 'The batch''s place in the run, from 0. The lower 24 bits of the target''s _batch.';
COMMENT ON COLUMN etl.batches.content_hash IS 'SHA-256 of the raw columns and rows, in hex. Another hash under the same identity is refused.';
COMMENT ON COLUMN etl.batches.result_id IS 'Which result the rows are of.';
COMMENT ON COLUMN etl.batches.first_row IS 'The ordinal of the first row in the result, from 0.';
COMMENT ON COLUMN etl.batches.rows_extracted IS 'Rows that Athena returned in this batch: rows_loaded + rows_rejected + rows_dropped.';
COMMENT ON COLUMN etl.batches.rows_loaded IS 'Rows accepted by the target, those that collapsed included.';
COMMENT ON COLUMN etl.batches.rows_collapsed IS 'Accepted rows found to have lost to another row of the same key (upsert): of this batch, or of an earlier batch of this run that this one replaced. Summed over a run, loaded - collapsed is the number of its distinct keys that no later run has replaced.';
COMMENT ON COLUMN etl.batches.rows_rejected IS 'Rows in etl.rejected_rows.';
COMMENT ON COLUMN etl.batches.rows_dropped IS 'Rows that a person gave up by name; 0 unless somebody did.';
COMMENT ON COLUMN etl.batches.loaded_at IS 'When the transaction began that loaded it.';

CREATE TABLE etl.rejected_rows (
    run_id      text NOT NULL,
    generation  integer NOT NULL,
    seq         integer NOT NULL,
    row_number  bigint NOT NULL CHECK (row_number >= 0),
    column_name text,
    rule        text NOT NULL,
    reason      text NOT NULL,
    raw         json,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, generation, row_number),
    FOREIGN KEY (run_id, generation, seq) REFERENCES etl.batches (run_id, generation, seq)
);

CREATE INDEX rejected_rows_of_batch ON etl.rejected_rows (run_id, generation, seq);

COMMENT ON TABLE etl.rejected_rows IS 'The quarantine: rows that were not loaded, each with its reason.';
COMMENT ON COLUMN etl.rejected_rows.run_id IS 'The run.';
COMMENT ON COLUMN etl.rejected_rows.generation IS 'The generation of the batch that it was in.';
COMMENT ON COLUMN etl.rejected_rows.seq IS 'The batch that it was in.';
COMMENT ON COLUMN etl.rejected_rows.row_number IS 'The row''s ordinal in the result, from 0.';
COMMENT ON COLUMN etl.rejected_rows.column_name IS 'The column to blame, where there is one.';
COMMENT ON COLUMN etl.rejected_rows.rule IS 'The rule that the row breaks: one of the job''s, type when a value is not one of its column''s type, postgres when Postgres refused the row.';
COMMENT ON COLUMN etl.rejected_rows.reason IS 'Why, for a person.';
COMMENT ON COLUMN etl.rejected_rows.raw IS 'The row''s values by column, in the result''s order: as Athena gave them, or in the form that Postgres refused. json, not jsonb, which would refuse the NUL that a row may have been rejected for. NULL once pruned.';
COMMENT ON COLUMN etl.rejected_rows.rejected_at IS 'When the batch was loaded.';

CREATE TABLE etl.dead_letters (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest      text NOT NULL UNIQUE,
    message_id  text,
    stage       text NOT NULL,
    reason      text NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    run_id      text,
    job         text,
    kind        text,
    queue       text,
    headers     jsonb NOT NULL DEFAULT '{}',
    body        bytea,
    dead_at     timestamptz,
    received_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution  text,
    CONSTRAINT dead_letters_resolved_somehow CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);

CREATE INDEX dead_letters_unresolved ON etl.dead_letters (run_id, id) WHERE resolved_at IS NULL;

COMMENT ON TABLE etl.dead_letters IS 'Messages that no stage could handle, drained from the queue etl.dead so that looking at them costs no delivery. A run with an unresolved one is stuck until a person acts.';
COMMENT ON COLUMN etl.dead_letters.digest IS 'SHA-256 over what was dead-lettered, where, why and when: a second delivery of the same dead letter is not a second one.';
COMMENT ON COLUMN etl.dead_letters.message_id IS 'The AMQP message_id: run/generation/seq of a batch.';
COMMENT ON COLUMN etl.dead_letters.stage IS 'Who gave it up: extractor, transformer, loader, or broker when the delivery limit was reached.';
COMMENT ON COLUMN etl.dead_letters.reason IS 'Why, for a person.';
COMMENT ON COLUMN etl.dead_letters.attempts IS 'How often it was tried.';
COMMENT ON COLUMN etl.dead_letters.run_id IS 'The run that its headers name. No foreign key: an unknown run is one of the reasons to be here.';
COMMENT ON COLUMN etl.dead_letters.job IS 'The job that its headers name.';
COMMENT ON COLUMN etl.dead_letters.kind IS 'The AMQP type: message type and version.';
COMMENT ON COLUMN etl.dead_letters.queue IS 'The queue that it was taken from, and would be replayed to.';
COMMENT ON COLUMN etl.dead_letters.headers IS 'Its headers.';
COMMENT ON COLUMN etl.dead_letters.body IS 'Its body as it was. NULL once pruned.';
COMMENT ON COLUMN etl.dead_letters.dead_at IS 'When it was given up.';
COMMENT ON COLUMN etl.dead_letters.received_at IS 'When the loader stored it.';
COMMENT ON COLUMN etl.dead_letters.resolved_at IS 'When a person replayed or dismissed it.';
COMMENT ON COLUMN etl.dead_letters.resolution IS 'What that person did.';

-- What `etl status` and `etl reconcile` read: a run's books in one row.
CREATE VIEW etl.run_books AS
SELECT r.run_id,
       r.run_no,
       r.job,
       r.target_table,
       r.mode,
       r.state,
       r.generation,
       r.batches_expected,
       r.rows_expected,
       b.batches,
       b.rows_extracted,
       b.rows_loaded,
       b.rows_collapsed,
       b.rows_rejected,
       b.rows_dropped,
       d.dead_letters,
       (r.batches_expected IS NOT NULL
        AND b.batches = r.batches_expected
        AND b.last_seq = r.batches_expected - 1
        AND b.rows_extracted = r.rows_expected
        AND b.rows_extracted = b.rows_loaded + b.rows_rejected + b.rows_dropped) AS balanced
FROM etl.runs r
CROSS JOIN LATERAL (
    SELECT count(*) AS batches,
           max(seq) AS last_seq,
           coalesce(sum(rows_extracted), 0)::bigint AS rows_extracted,
           coalesce(sum(rows_loaded), 0)::bigint AS rows_loaded,
           coalesce(sum(rows_collapsed), 0)::bigint AS rows_collapsed,
           coalesce(sum(rows_rejected), 0)::bigint AS rows_rejected,
           coalesce(sum(rows_dropped), 0)::bigint AS rows_dropped
    FROM etl.batches WHERE run_id = r.run_id AND generation = r.generation
) b
CROSS JOIN LATERAL (
    SELECT count(*) AS dead_letters FROM etl.dead_letters WHERE run_id = r.run_id AND resolved_at IS NULL
) d;

COMMENT ON VIEW etl.run_books IS 'The books of each run in its live generation. balanced: every batch of the result is in the ledger and every row is loaded, rejected or dropped.';
