-- The ledger: which runs were requested, which batches arrived, which rows were rejected, and what could not be processed.
--
-- Runs and batches are never pruned: a replay of a forgotten batch would load it twice.

-- What a row of a target carries in its column _batch: the run's number and the first row of the batch. These functions
-- and the type BatchNo of the crate are the only places that know the layout.
CREATE FUNCTION etl.batch_no(run_no bigint, first_row bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN run_no << 36 | first_row;
CREATE FUNCTION etl.run_no(batch_no bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN batch_no >> 36;
CREATE FUNCTION etl.first_row(batch_no bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN batch_no & 68719476735;

COMMENT ON FUNCTION etl.batch_no IS 'The value of _batch in the rows of a batch.';
COMMENT ON FUNCTION etl.run_no IS 'The number of the run that a row came with, from its _batch: etl.runs.run_no.';
COMMENT ON FUNCTION etl.first_row IS 'The first row of the batch that a row came with, from its _batch: etl.batches.first_row.';

CREATE TABLE etl.runs (
    run_id             text PRIMARY KEY CHECK (run_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    -- 27 bits: `_batch` keeps 36 of a bigint's 63 for the first row of the batch.
    run_no             bigint GENERATED ALWAYS AS IDENTITY UNIQUE CHECK (run_no > 0 AND run_no < 134217727),
    job                text NOT NULL,
    job_hash           text NOT NULL,
    job_spec           jsonb NOT NULL,
    description        text,
    parameters         jsonb NOT NULL DEFAULT '{}',
    sql                text NOT NULL,
    catalog            text,
    database           text,
    limits             jsonb,
    target_table       text NOT NULL,
    mode               text NOT NULL,
    commit             text NOT NULL DEFAULT 'batch',
    target_window      text NOT NULL DEFAULT '',
    target_bounds      jsonb,
    watermark_from     text,
    watermark_to       text,
    state              text NOT NULL DEFAULT 'requested',
    generation         integer NOT NULL DEFAULT 0 CHECK (generation >= 0),
    first_generation   integer NOT NULL DEFAULT 0 CHECK (first_generation >= 0),
    query_execution_id text,
    result_id          text,
    result_location    text,
    result_columns     jsonb,
    target_columns     text[],
    removed_columns    text[] NOT NULL DEFAULT '{}',
    batches_extracted  integer NOT NULL DEFAULT 0 CHECK (batches_extracted >= 0),
    rows_extracted     bigint NOT NULL DEFAULT 0 CHECK (rows_extracted >= 0),
    batches_expected   integer CHECK (batches_expected > 0),
    rows_expected      bigint CHECK (rows_expected >= 0),
    bytes_scanned      bigint CHECK (bytes_scanned >= 0),
    ignored_messages   bigint NOT NULL DEFAULT 0 CHECK (ignored_messages >= 0),
    failure            text,
    held_because       text,
    decided_by         text,
    decision           text,
    requested_by       text,
    requested_at       timestamptz NOT NULL DEFAULT now(),
    started_at         timestamptz,
    extracted_at       timestamptz,
    approved_at        timestamptz,
    completed_at       timestamptz,
    committed_at       timestamptz,
    finished_at        timestamptz,
    CONSTRAINT runs_first_generation_is_one CHECK (first_generation <= generation),
    CONSTRAINT runs_watermark_has_a_beginning CHECK (watermark_to IS NULL OR watermark_from IS NOT NULL),
    CONSTRAINT runs_run_id_valid CHECK (run_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    CONSTRAINT runs_commit_known CHECK (commit IN ('batch', 'run')),
    CONSTRAINT runs_state_known CHECK (state IN ('requested', 'running', 'held', 'completed', 'failed', 'cancelled', 'superseded')),
    CONSTRAINT runs_finished_when_terminal CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled', 'superseded'))),
    CONSTRAINT runs_failure_has_a_reason CHECK (state <> 'failed' OR failure IS NOT NULL),
    CONSTRAINT runs_held_has_a_reason CHECK (state <> 'held' OR held_because IS NOT NULL),
    CONSTRAINT runs_completed_is_measured CHECK (state NOT IN ('held', 'completed', 'superseded') OR rows_expected IS NOT NULL)
);

CREATE INDEX runs_open ON etl.runs (requested_at) WHERE state IN ('requested', 'running');
CREATE INDEX runs_finished ON etl.runs (finished_at);
CREATE INDEX runs_of_job ON etl.runs (job, run_no DESC);
-- One run at a time reads on from a watermark.
CREATE INDEX runs_reading_on ON etl.runs (job, run_no DESC) WHERE watermark_from IS NOT NULL;
-- Which newer runs a replace has to give way to.
CREATE INDEX runs_committed ON etl.runs (target_table, run_no) WHERE committed_at IS NOT NULL;

COMMENT ON TABLE etl.runs IS 'One row for each request of a job. etl run writes it before it sends anything; the loader keeps it up to date.';
COMMENT ON COLUMN etl.runs.run_id IS 'The run''s name, chosen by the requester. A second request of the same name is the same request.';
COMMENT ON COLUMN etl.runs.run_no IS 'Grows with each request, and a retry has a new one. Rows of the target carry it: SELECT ... WHERE etl.run_no(_batch) = run_no.';
COMMENT ON COLUMN etl.runs.job IS 'The job''s name.';
COMMENT ON COLUMN etl.runs.job_hash IS 'Hash of the job at the time of the request, in hex.';
COMMENT ON COLUMN etl.runs.job_spec IS 'The job at the time of the request.';
COMMENT ON COLUMN etl.runs.parameters IS 'The parameters and their values, as text.';
COMMENT ON COLUMN etl.runs.sql IS 'The SQL that Athena receives, parameters filled in.';
COMMENT ON COLUMN etl.runs.description IS 'The job''s description at the time of the request.';
COMMENT ON COLUMN etl.runs.catalog IS 'The data catalog that names in the SQL are of; NULL for Athena''s own, AwsDataCatalog.';
COMMENT ON COLUMN etl.runs.database IS 'The database that names in the SQL are of.';
COMMENT ON COLUMN etl.runs.limits IS 'The bounds of the run''s batches: a second reading of the result has to cut the same batches.';
COMMENT ON COLUMN etl.runs.target_table IS 'The table that the rows go to, with its schema.';
COMMENT ON COLUMN etl.runs.mode IS 'What the rows do to the target: append, upsert, insert_only or replace.';
COMMENT ON COLUMN etl.runs.commit IS 'When rows reach the target: batch (each batch by itself) or run (all of them in the completing transaction).';
COMMENT ON COLUMN etl.runs.target_window IS 'What part of the target a committed replace replaced, as an SQL condition; empty for the whole table.';
COMMENT ON COLUMN etl.runs.target_bounds IS 'The same as data, written at the commit: an older run whose window overlaps is superseded.';
COMMENT ON COLUMN etl.runs.watermark_from IS 'The job''s watermark when the run was requested; NULL for a job without one, and for a run that was given the range by hand.';
COMMENT ON COLUMN etl.runs.watermark_to IS 'The watermark once the run is complete: in mode append the end of its range; with a key the latest value that Athena returned, known then.';
COMMENT ON COLUMN etl.runs.state IS 'requested, running, held (a person decides: etl approve, etl discard), then one of completed, failed, cancelled, superseded. The first of these four stays until a replay.';
COMMENT ON COLUMN etl.runs.generation IS 'The live generation: 0, and one more for each replay and each retry. Batches of an older one are stale.';
COMMENT ON COLUMN etl.runs.first_generation IS 'The generation that the run''s query was requested with: 0, or that of its last retry. Later ones are replays.';
COMMENT ON COLUMN etl.runs.query_execution_id IS 'Athena''s id of the query.';
COMMENT ON COLUMN etl.runs.result_id IS 'The result that the batches are of: the execution id with the object''s ETag, or with pages. Set by the first batch; a batch of another result is refused.';
COMMENT ON COLUMN etl.runs.result_location IS 'The object in S3 that Athena wrote the result to, as s3://bucket/key; NULL for a result that was read as pages.';
COMMENT ON COLUMN etl.runs.result_columns IS 'The names and types of the result''s columns. With them its object can be read again after Athena has forgotten the query.';
COMMENT ON COLUMN etl.runs.removed_columns IS 'The columns that the run before loaded and this one does not: new rows have their default or NULL there.';
COMMENT ON COLUMN etl.runs.target_columns IS 'The columns of the target that the run loads, recorded with its first batch. The job''s next run is compared with them.';
COMMENT ON COLUMN etl.runs.batches_extracted IS 'Batches that the extractor has published so far, as it reports.';
COMMENT ON COLUMN etl.runs.rows_extracted IS 'Rows that the extractor has published so far, as it reports.';
COMMENT ON COLUMN etl.runs.batches_expected IS 'Batches of the whole result; unknown until it was read to its end.';
COMMENT ON COLUMN etl.runs.rows_expected IS 'Rows of the whole result; unknown until it was read to its end.';
COMMENT ON COLUMN etl.runs.bytes_scanned IS 'Bytes that Athena scanned for the run, in all of its queries: the sum of etl.queries.';
COMMENT ON COLUMN etl.runs.ignored_messages IS 'Batches and events that arrived after the run had ended. They were acknowledged and changed nothing.';
COMMENT ON COLUMN etl.runs.failure IS 'Why the run failed, for a person.';
COMMENT ON COLUMN etl.runs.held_because IS 'Why the run is held, or was, for a person.';
COMMENT ON COLUMN etl.runs.decided_by IS 'The user who cancelled, approved or discarded the run.';
COMMENT ON COLUMN etl.runs.decision IS 'What that person decided, with the reason where one was given.';
COMMENT ON COLUMN etl.runs.requested_by IS 'The user who requested the run.';
COMMENT ON COLUMN etl.runs.requested_at IS 'When etl run wrote this row.';
COMMENT ON COLUMN etl.runs.started_at IS 'When the loader learned that Athena has the query.';
COMMENT ON COLUMN etl.runs.extracted_at IS 'When the loader learned that the result was read to its end.';
COMMENT ON COLUMN etl.runs.approved_at IS 'When a person approved the held run; it is then committed although it was held.';
COMMENT ON COLUMN etl.runs.committed_at IS 'When the rows of a run that is committed as a whole reached the target.';
COMMENT ON COLUMN etl.runs.finished_at IS 'When the run reached its terminal state.';

CREATE TABLE etl.attempts (
    run_no             bigint PRIMARY KEY,
    run_id             text NOT NULL REFERENCES etl.runs (run_id),
    first_generation   integer NOT NULL,
    generation         integer NOT NULL,
    state              text NOT NULL CHECK (state IN ('failed', 'cancelled')),
    failure            text,
    decided_by         text,
    decision           text,
    job_hash           text NOT NULL,
    job_spec           jsonb NOT NULL,
    sql                text NOT NULL,
    limits             jsonb,
    query_execution_id text,
    result_id          text,
    result_location    text,
    batches_expected   integer,
    rows_expected      bigint,
    requested_by       text,
    requested_at       timestamptz NOT NULL,
    started_at         timestamptz,
    finished_at        timestamptz NOT NULL,
    CONSTRAINT attempts_of_a_run UNIQUE (run_id, generation)
);

COMMENT ON TABLE etl.attempts IS 'The former attempts of runs that were retried, as etl.runs had them when they had failed or were cancelled. None of their rows is in the target.';
COMMENT ON COLUMN etl.attempts.run_no IS 'The number that the run had then.';
COMMENT ON COLUMN etl.attempts.first_generation IS 'The attempt''s generations are from this one';
COMMENT ON COLUMN etl.attempts.generation IS 'up to this one.';

CREATE TABLE etl.queries (
    run_id             text NOT NULL REFERENCES etl.runs (run_id),
    query_execution_id text NOT NULL,
    generation         integer NOT NULL DEFAULT 0 CHECK (generation >= 0),
    attempt            integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
    principal          text,
    region             text,
    state              text NOT NULL DEFAULT 'started',
    bytes_scanned      bigint NOT NULL DEFAULT 0 CHECK (bytes_scanned >= 0),
    reused             boolean NOT NULL DEFAULT false,
    started_at         timestamptz NOT NULL DEFAULT now(),
    ended_at           timestamptz,
    PRIMARY KEY (run_id, query_execution_id),
    CONSTRAINT queries_state_known CHECK (state IN ('started', 'succeeded', 'failed', 'stopped'))
);

COMMENT ON TABLE etl.queries IS 'Each query that Athena executed for a run, also of runs that failed or were cancelled.';
COMMENT ON COLUMN etl.queries.generation IS 'The generation of the run that it was started for: each retry of a run has queries of its own.';
COMMENT ON COLUMN etl.queries.attempt IS 'From 1: a query that failed for a reason that passes is started again.';
COMMENT ON COLUMN etl.queries.principal IS 'Who asked Athena: the ARN of the user or role, or the end of the access key where AWS does not tell.';
COMMENT ON COLUMN etl.queries.region IS 'The AWS region.';
COMMENT ON COLUMN etl.queries.state IS 'started, then succeeded, failed or stopped (by a person, or at a limit of the job).';
COMMENT ON COLUMN etl.queries.bytes_scanned IS 'Bytes that Athena scanned, which is what it charges for unless the query failed.';
COMMENT ON COLUMN etl.queries.reused IS 'Athena answered with the result of an earlier query, and scanned nothing.';
COMMENT ON COLUMN etl.queries.started_at IS 'When the loader learned of it.';
COMMENT ON COLUMN etl.queries.ended_at IS 'When the loader learned of its end.';

CREATE TABLE etl.batches (
    run_id            text NOT NULL REFERENCES etl.runs (run_id),
    generation        integer NOT NULL CHECK (generation >= 0),
    first_row         bigint NOT NULL CHECK (first_row >= 0 AND first_row < 68719476736),
    content_hash      text NOT NULL,
    result_id         text NOT NULL,
    rows_extracted    bigint NOT NULL CHECK (rows_extracted >= 0),
    rows_loaded       bigint NOT NULL CHECK (rows_loaded >= 0),
    rows_deduplicated bigint NOT NULL DEFAULT 0 CHECK (rows_deduplicated >= 0),
    rows_rejected     bigint NOT NULL DEFAULT 0 CHECK (rows_rejected >= 0),
    rows_dropped      bigint NOT NULL DEFAULT 0 CHECK (rows_dropped >= 0),
    watermark         text,
    loaded_at         timestamptz NOT NULL DEFAULT now(),
    dropped_by        text,
    drop_reason       text,
    PRIMARY KEY (run_id, generation, first_row),
    CONSTRAINT batches_balance CHECK (rows_extracted = rows_loaded + rows_rejected + rows_dropped),
    CONSTRAINT batches_deduplicated_were_loaded CHECK (rows_deduplicated <= rows_loaded)
);

COMMENT ON TABLE etl.batches IS 'One row a batch, written in the transaction that writes the batch''s rows. A batch that is here is in the target, and is never loaded again.';
COMMENT ON COLUMN etl.batches.run_id IS 'The run.';
COMMENT ON COLUMN etl.batches.generation IS 'The generation of the run that the batch was delivered in.';
COMMENT ON COLUMN etl.batches.content_hash IS 'SHA-256 of the raw columns and rows, in hex. Another hash under the same identity is refused.';
COMMENT ON COLUMN etl.batches.result_id IS 'The result that the rows are of.';
COMMENT ON COLUMN etl.batches.first_row IS 'The ordinal of the first row in the result, from 0, by which the batch is known: etl.first_row(_batch) of the target''s rows.';
COMMENT ON COLUMN etl.batches.rows_extracted IS 'Rows that Athena returned in this batch: rows_loaded + rows_rejected + rows_dropped.';
COMMENT ON COLUMN etl.batches.rows_loaded IS 'Rows accepted by the target, deduplicated ones included.';
COMMENT ON COLUMN etl.batches.rows_deduplicated IS 'Accepted rows that lost to another row of the same key: of this batch, or of an earlier batch of this run that this one overwrote. Summed over a run, loaded - deduplicated is the number of its distinct keys that no later run has overwritten.';
COMMENT ON COLUMN etl.batches.rows_rejected IS 'Rows in etl.rejected_rows.';
COMMENT ON COLUMN etl.batches.rows_dropped IS 'Rows that a person dropped by name; 0 otherwise.';
COMMENT ON COLUMN etl.batches.watermark IS 'The latest value of the column with the job''s watermark in the rows that Athena returned, rejected ones included; NULL in mode append and for other jobs.';
COMMENT ON COLUMN etl.batches.loaded_at IS 'When the transaction began that loaded it.';
COMMENT ON COLUMN etl.batches.dropped_by IS 'The user who dropped rows of this batch.';
COMMENT ON COLUMN etl.batches.drop_reason IS 'Why that user dropped them.';

CREATE FUNCTION etl.last_row_end(of_run text, of_generation integer) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE RETURN (
        SELECT first_row + rows_extracted FROM etl.batches WHERE run_id = of_run AND generation = of_generation
        ORDER BY first_row DESC LIMIT 1);
COMMENT ON FUNCTION etl.last_row_end IS 'The row behind the last batch that the ledger has of a run; NULL without a batch.';

CREATE TABLE etl.watermarks (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job    text NOT NULL,
    value  text NOT NULL,
    run_id text REFERENCES etl.runs (run_id),
    run_no bigint,
    set_by text,
    reason text NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now(),
    -- Rows before the value are in this table, up to it (append) or with it (a key).
    target_table text NOT NULL,
    mode   text NOT NULL,
    CONSTRAINT watermarks_by_a_run_or_a_person CHECK ((run_no IS NULL) = (run_id IS NULL) AND (set_by IS NULL) = (run_id IS NOT NULL))
);

CREATE INDEX watermarks_of_job ON etl.watermarks (job, id DESC);
CREATE INDEX watermarks_of_run ON etl.watermarks (run_no) WHERE run_no IS NOT NULL;

COMMENT ON TABLE etl.watermarks IS 'Each change of a job''s watermark; the latest one counts. A run changes it in the transaction that completes the run.';
COMMENT ON COLUMN etl.watermarks.value IS 'From where the next run reads.';
COMMENT ON COLUMN etl.watermarks.run_id IS 'The run that was completed, or whose rows were removed again.';
COMMENT ON COLUMN etl.watermarks.run_no IS 'Its number then.';
COMMENT ON COLUMN etl.watermarks.set_by IS 'The user who set it with etl watermark.';
COMMENT ON COLUMN etl.watermarks.reason IS 'Why.';

CREATE TABLE etl.conflicts (
    run_no             bigint NOT NULL,
    conflicting_run_no bigint NOT NULL,
    rows               bigint NOT NULL CHECK (rows > 0),
    PRIMARY KEY (conflicting_run_no, run_no)
);

CREATE INDEX conflicts_of_run ON etl.conflicts (run_no);

COMMENT ON TABLE etl.conflicts IS 'Rows of runs that are not in their target because a row of another run has their key. Without such rows a run can be undone without a loss for others.';
COMMENT ON COLUMN etl.conflicts.run_no IS 'The run whose rows gave way or were overwritten; 0 for rows that no run had loaded.';
COMMENT ON COLUMN etl.conflicts.conflicting_run_no IS 'The run whose rows are there instead, unless a later run has overwritten them too.';
COMMENT ON COLUMN etl.conflicts.rows IS 'How many rows, at most.';

CREATE TABLE etl.rejected_rows (
    run_id      text NOT NULL,
    generation  integer NOT NULL,
    first_row   bigint NOT NULL,
    row_number  bigint NOT NULL CHECK (row_number >= 0),
    column_name text,
    rule        text NOT NULL,
    reason      text NOT NULL,
    raw         json,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, generation, row_number),
    -- A partial replay carries the batches that it does not touch forward into the new generation.
    CONSTRAINT rejected_rows_of_a_batch FOREIGN KEY (run_id, generation, first_row)
        REFERENCES etl.batches (run_id, generation, first_row) ON UPDATE CASCADE
);

CREATE INDEX rejected_rows_of_batch ON etl.rejected_rows (run_id, generation, first_row);

COMMENT ON TABLE etl.rejected_rows IS 'The quarantine: rows that were not loaded, each with its reason.';
COMMENT ON COLUMN etl.rejected_rows.run_id IS 'The run.';
COMMENT ON COLUMN etl.rejected_rows.generation IS 'The generation of the batch that it was in.';
COMMENT ON COLUMN etl.rejected_rows.first_row IS 'The first row of the batch that it was in.';
COMMENT ON COLUMN etl.rejected_rows.row_number IS 'The row''s ordinal in the result, from 0.';
COMMENT ON COLUMN etl.rejected_rows.column_name IS 'The column to blame, where there is one.';
COMMENT ON COLUMN etl.rejected_rows.rule IS 'The rule that the row breaks: one of the job''s, type when a value is not one of its column''s type, postgres when Postgres refused the row.';
COMMENT ON COLUMN etl.rejected_rows.reason IS 'Why, for a person.';
COMMENT ON COLUMN etl.rejected_rows.raw IS 'The row''s values by column, in the result''s order: as Athena gave them, or in the form that Postgres refused; of a masked column, the mask. json, not jsonb, which would refuse the NUL that a row may have been rejected for. NULL once pruned.';
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
    CONSTRAINT dead_letters_resolved_with_a_resolution CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);

CREATE INDEX dead_letters_unresolved ON etl.dead_letters (run_id, id) WHERE resolved_at IS NULL;

COMMENT ON TABLE etl.dead_letters IS 'Messages that no stage could process, drained from the queue etl.dead so that looking at them costs no delivery. A run with an unresolved one is blocked until a person acts.';
COMMENT ON COLUMN etl.dead_letters.digest IS 'SHA-256 over what was dead-lettered, where, why and when: a second delivery of the same dead letter is not a second one.';
COMMENT ON COLUMN etl.dead_letters.message_id IS 'The AMQP message_id: run/generation/first row of a batch.';
COMMENT ON COLUMN etl.dead_letters.stage IS 'The stage that dead-lettered it: extractor, transformer, loader, or broker when the delivery limit was reached.';
COMMENT ON COLUMN etl.dead_letters.reason IS 'Why, for a person.';
COMMENT ON COLUMN etl.dead_letters.attempts IS 'How often it was tried.';
COMMENT ON COLUMN etl.dead_letters.run_id IS 'The run that its headers name, where that can be the name of a run. No foreign key: an unknown run is one of the reasons to be here.';
COMMENT ON COLUMN etl.dead_letters.job IS 'The job that its headers name.';
COMMENT ON COLUMN etl.dead_letters.kind IS 'The AMQP type: message type and version.';
COMMENT ON COLUMN etl.dead_letters.queue IS 'The queue that it was taken from, and would be sent to again.';
COMMENT ON COLUMN etl.dead_letters.headers IS 'Its headers.';
COMMENT ON COLUMN etl.dead_letters.body IS 'Its body as it was. NULL once pruned.';
COMMENT ON COLUMN etl.dead_letters.dead_at IS 'When it was dead-lettered.';
COMMENT ON COLUMN etl.dead_letters.received_at IS 'When the loader stored it.';
COMMENT ON COLUMN etl.dead_letters.resolved_at IS 'When a person replayed or dropped it.';
COMMENT ON COLUMN etl.dead_letters.resolution IS 'What that person did.';

CREATE SCHEMA etl_staging;
COMMENT ON SCHEMA etl_staging IS 'Rows of runs that are committed as a whole: one table for each run and generation, dropped when the run is over.';

CREATE TABLE etl.staging (
    run_id     text NOT NULL REFERENCES etl.runs (run_id),
    generation integer NOT NULL CHECK (generation >= 0),
    table_name text NOT NULL UNIQUE,
    target     jsonb NOT NULL,
    columns    jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, generation)
);

COMMENT ON TABLE etl.staging IS 'The tables in schema etl_staging, and what it takes to commit each. A row is removed with its table.';
COMMENT ON COLUMN etl.staging.target IS 'The target as the batches of this generation have it.';
COMMENT ON COLUMN etl.staging.columns IS 'The columns as the batches of this generation have them.';

CREATE TABLE etl.parked (
    run_id       text NOT NULL,
    generation   integer NOT NULL CHECK (generation >= 0),
    first_row    bigint NOT NULL CHECK (first_row >= -2),
    target_table text NOT NULL,
    bytes        bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    reason       text NOT NULL,
    attempts     integer NOT NULL DEFAULT 1,
    parked_at    timestamptz NOT NULL DEFAULT now(),
    tried_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, generation, first_row)
);

COMMENT ON TABLE etl.parked IS 'Batches that wait in the queue etl.parked until their target takes them, commits that wait for it, and extractions that are paused. A row is removed when its batch is loaded; one that is left over counts no more.';
COMMENT ON COLUMN etl.parked.run_id IS 'The run. No foreign key: its check would wait for a run that is being committed.';
COMMENT ON COLUMN etl.parked.first_row IS 'The first row of the batch; -1 for the commit of the run, -2 for its extraction.';
COMMENT ON COLUMN etl.parked.target_table IS 'The target.';
COMMENT ON COLUMN etl.parked.bytes IS 'The length of its message.';
COMMENT ON COLUMN etl.parked.reason IS 'Why the latest attempt failed.';
COMMENT ON COLUMN etl.parked.attempts IS 'How often it was parked.';
COMMENT ON COLUMN etl.parked.parked_at IS 'When it was parked first.';
COMMENT ON COLUMN etl.parked.tried_at IS 'When it was parked last.';

CREATE TABLE etl.replays (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id       text NOT NULL REFERENCES etl.runs (run_id),
    generation   integer NOT NULL CHECK (generation > 0),
    source       text NOT NULL CHECK (source IN ('archive', 'athena')),
    rows         int8multirange NOT NULL,
    job_hash     text NOT NULL,
    job_spec     jsonb NOT NULL,
    state_before text NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    sent_at      timestamptz,
    abandoned    text,
    target_columns text[],
    UNIQUE (run_id, generation)
);

COMMENT ON TABLE etl.replays IS 'Each replay of a run. Written, and the run''s generation raised, before the first message is sent; one that was not sent to its end is resumed.';
COMMENT ON COLUMN etl.replays.rows IS 'The rows of the result whose batches are replayed; the others were carried forward.';
COMMENT ON COLUMN etl.replays.job_spec IS 'The job at the time of the replay.';
COMMENT ON COLUMN etl.replays.state_before IS 'The run''s state at the time of the replay.';
COMMENT ON COLUMN etl.replays.target_columns IS 'As etl.runs.target_columns, recorded with the first batch of the replay. They count unless it was abandoned.';
COMMENT ON COLUMN etl.replays.sent_at IS 'When the last message of it was sent; NULL while it is unfinished.';
COMMENT ON COLUMN etl.replays.abandoned IS 'Why it was abandoned: the batches that it had not replaced keep what an earlier generation made of them.';

CREATE TABLE etl.removals (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id       text NOT NULL REFERENCES etl.runs (run_id),
    generation   integer NOT NULL CHECK (generation >= 0),
    batch        jsonb,
    requested_by text NOT NULL,
    reason       text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    rows_removed bigint CHECK (rows_removed >= 0),
    finished_at  timestamptz,
    outcome      text,
    failure      text,
    failed_at    timestamptz,
    CONSTRAINT removals_finished_with_an_outcome CHECK ((finished_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX removals_pending ON etl.removals (run_id) WHERE finished_at IS NULL;

COMMENT ON TABLE etl.removals IS 'Requests of people to take rows of a run out of its target. A loader executes them, in one transaction with the ledger rows that say so.';
COMMENT ON COLUMN etl.removals.generation IS 'The live generation at the time of the request.';
COMMENT ON COLUMN etl.removals.batch IS 'The one batch whose rows go, with the dead letter that is dropped; NULL for all rows of the run.';
COMMENT ON COLUMN etl.removals.requested_by IS 'The user who requested it.';
COMMENT ON COLUMN etl.removals.reason IS 'Why that user requested it.';
COMMENT ON COLUMN etl.removals.rows_removed IS 'Rows that were deleted from the target.';
COMMENT ON COLUMN etl.removals.finished_at IS 'When a loader executed it; NULL while it is pending.';
COMMENT ON COLUMN etl.removals.outcome IS 'removed, or why nothing was removed.';
COMMENT ON COLUMN etl.removals.failure IS 'Why the last attempt failed; a loader tries again after a minute.';
COMMENT ON COLUMN etl.removals.failed_at IS 'When the last attempt failed.';

CREATE TABLE etl.jobs (
    job            text PRIMARY KEY,
    notify         text[] NOT NULL DEFAULT '{}',
    warn_rejected  text NOT NULL,
    expected_every interval CHECK (expected_every > interval '0'),
    expected_since timestamptz NOT NULL DEFAULT now(),
    told_late_of   timestamptz,
    requested_at   timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE etl.jobs IS 'What each job said at its latest request about being told and about when it is expected: the loader has no job files. A row that is deleted comes back with the job''s next request.';
COMMENT ON COLUMN etl.jobs.job IS 'The job''s name.';
COMMENT ON COLUMN etl.jobs.notify IS 'The channels that are told when a run fails, is held or has many rejected rows, and when the job is late.';
COMMENT ON COLUMN etl.jobs.warn_rejected IS 'What many rejected rows are: a number, or a share such as 5%.';
COMMENT ON COLUMN etl.jobs.expected_every IS 'The longest time between two completed runs, but for a tenth; NULL for a job that is never late.';
COMMENT ON COLUMN etl.jobs.expected_since IS 'When the job began to be expected so often: it is not late for what was before.';
COMMENT ON COLUMN etl.jobs.told_late_of IS 'The end of the run since which the job was last told to be late: it is told once.';
COMMENT ON COLUMN etl.jobs.requested_at IS 'When a run of the job was requested last.';

CREATE TABLE etl.outbox (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    position        bigint GENERATED ALWAYS AS IDENTITY,
    channel         text NOT NULL,
    event           text NOT NULL,
    job             text NOT NULL,
    run_id          text,
    body            jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error      text
);

CREATE INDEX outbox_by_channel ON etl.outbox (channel, position);

COMMENT ON TABLE etl.outbox IS 'What is still to be sent to somebody outside: written in the transaction that makes it true, sent by a loader, and deleted once the receiver has taken it. A receiver may get a message twice.';
COMMENT ON COLUMN etl.outbox.id IS 'Identifies the message: a receiver that gets it twice gets the same id.';
COMMENT ON COLUMN etl.outbox.position IS 'The order in which messages are sent.';
COMMENT ON COLUMN etl.outbox.channel IS 'Where it goes: the name of a channel, whose URL or command is a setting of the loaders.';
COMMENT ON COLUMN etl.outbox.event IS 'What happened: failed, held, rejected or late; to OpenLineage start, complete, fail or abort.';
COMMENT ON COLUMN etl.outbox.job IS 'The job that it is about.';
COMMENT ON COLUMN etl.outbox.run_id IS 'The run that it is about, if it is about one.';
COMMENT ON COLUMN etl.outbox.body IS 'What is sent, as JSON, or for OpenLineage what the event is made of. It has no value of a row.';
COMMENT ON COLUMN etl.outbox.created_at IS 'When it happened.';
COMMENT ON COLUMN etl.outbox.attempts IS 'How often a loader has tried to send it.';
COMMENT ON COLUMN etl.outbox.next_attempt_at IS 'When it is tried next; while a loader sends it, when another one may.';
COMMENT ON COLUMN etl.outbox.last_error IS 'Why the last attempt failed. It has no part of the channel''s URL but the host.';

CREATE TABLE etl.loaders (
    role_name text NOT NULL,
    channels  text[] NOT NULL DEFAULT '{}',
    seen_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (role_name, channels)
);

COMMENT ON TABLE etl.loaders IS 'The roles that loaders work as. etl plan, etl run and etl doctor check a target for them.';
COMMENT ON COLUMN etl.loaders.role_name IS 'The role whose privileges count: current_user of a loader''s sessions.';
COMMENT ON COLUMN etl.loaders.channels IS 'The channels that a loader of this role has settings for, ETL_NOTIFY_...: what is told to another one waits in etl.outbox.';
COMMENT ON COLUMN etl.loaders.seen_at IS 'When a loader recorded it last; it does so once a minute.';

-- What etl status and etl reconcile read: the sums of each run in its live generation.
CREATE VIEW etl.run_balance AS
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
       b.rows_deduplicated,
       b.rows_rejected,
       b.rows_dropped,
       d.dead_letters,
       (b.is_whole
        AND b.rows_extracted = r.rows_expected
        AND b.rows_extracted = b.rows_loaded + b.rows_rejected + b.rows_dropped) IS TRUE AS balanced
FROM etl.runs r
CROSS JOIN LATERAL (
    SELECT count(*) AS batches,
           -- Each batch begins where those before it end: no row is missing or there twice.
           bool_and(first_row = rows_before) AS is_whole,
           coalesce(sum(rows_extracted), 0)::bigint AS rows_extracted,
           coalesce(sum(rows_loaded), 0)::bigint AS rows_loaded,
           coalesce(sum(rows_deduplicated), 0)::bigint AS rows_deduplicated,
           coalesce(sum(rows_rejected), 0)::bigint AS rows_rejected,
           coalesce(sum(rows_dropped), 0)::bigint AS rows_dropped
    FROM (SELECT *, sum(rows_extracted) OVER (ORDER BY first_row) - rows_extracted AS rows_before
          FROM etl.batches WHERE run_id = r.run_id AND generation = r.generation) placed
) b
CROSS JOIN LATERAL (
    SELECT count(*) AS dead_letters FROM etl.dead_letters WHERE run_id = r.run_id AND resolved_at IS NULL
) d;

COMMENT ON VIEW etl.run_balance IS 'The sums of each run in its live generation. balanced: the batches have every row of the result once, and every row is loaded, rejected or dropped.';

-- The search_path for a statement that fires triggers: as the session has it by itself, and the schema of the table.
CREATE FUNCTION etl.path_of_triggers(target_schema text) RETURNS text
    LANGUAGE sql RETURN (
        SELECT concat_ws(', ', nullif(reset_val, ''), quote_ident(target_schema)) FROM pg_settings WHERE name = 'search_path');

COMMENT ON FUNCTION etl.path_of_triggers IS 'The search_path that triggers on a table of a schema expect.';

-- Writes rows whose batch has rows that PostgreSQL refuses: in one call, so that it takes no round trip a row. The statement
-- writes the rows in $1, whose values stand behind each other; $2 is the value of _batch. The casts are those of the values r
-- of one row. target_schema is that of a table with triggers, or NULL. Returns each refused row, and at the end the number of
-- rows that were stored. Any error that is not a row's fault, by the prefixes of its SQLSTATE, ends it.
CREATE FUNCTION etl.write_rows(statement text, casts text[], row_values text[], batch_no bigint, row_faults text[], target_schema text)
RETURNS TABLE (row_index integer, stored bigint, reason text, column_name text, column_place integer)
LANGUAGE plpgsql AS $$
DECLARE
    width CONSTANT integer := cardinality(casts);
    -- Once: pg_settings has all settings, and takes as long to read as many rows to write.
    path CONSTANT text := CASE WHEN target_schema IS NOT NULL THEN etl.path_of_triggers(target_schema) END;
    total bigint := 0;
    written bigint;
    part text[];
    part_start integer;
    line text[];
    is_whole boolean;
    state text;
    message text;
    detail text;
BEGIN
    FOR part_start, part IN
        SELECT min(v.place - 1) / width, array_agg(v.value ORDER BY v.place)
        FROM unnest(row_values) WITH ORDINALITY AS v (value, place)
        GROUP BY (v.place - 1) / (width * 64) ORDER BY 1
    LOOP
        -- Most parts have no refused row, and are one statement.
        BEGIN
            IF path IS NOT NULL THEN
                PERFORM pg_catalog.set_config('search_path', path, true);
            END IF;
            EXECUTE statement USING part, batch_no;
            GET DIAGNOSTICS written = ROW_COUNT;
            SET LOCAL search_path = pg_catalog, pg_temp;
            is_whole := true;
            total := total + written;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE;
            IF NOT state ^@ ANY (row_faults) THEN
                RAISE;
            END IF;
            is_whole := false;
        END;
        CONTINUE WHEN is_whole;
        FOR i IN 0 .. cardinality(part) / width - 1 LOOP
            line := part[i * width + 1 : (i + 1) * width];
            BEGIN
                IF path IS NOT NULL THEN
                    PERFORM pg_catalog.set_config('search_path', path, true);
                END IF;
                EXECUTE statement USING line, batch_no;
                GET DIAGNOSTICS written = ROW_COUNT;
                SET LOCAL search_path = pg_catalog, pg_temp;
                total := total + written;
            EXCEPTION WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                    detail = PG_EXCEPTION_DETAIL, column_name = COLUMN_NAME;
                IF NOT state ^@ ANY (row_faults) THEN
                    RAISE;
                END IF;
                row_index := part_start + i;
                reason := concat(message, ': ' || nullif(detail, ''), ' (' || state || ')');
                column_place := NULL;
                -- A value that is none of its type: the error does not name the column.
                IF column_name = '' AND state ^@ '22' THEN
                    FOR place IN 1 .. width LOOP
                        BEGIN
                            EXECUTE 'SELECT ' || casts[place] || ' FROM (SELECT $1 AS r) AS one' USING line;
                        EXCEPTION WHEN data_exception THEN
                            column_place := place;
                            EXIT;
                        END;
                    END LOOP;
                END IF;
                RETURN NEXT;
            END;
        END LOOP;
    END LOOP;
    row_index := NULL;
    stored := total;
    RETURN NEXT;
END $$;

COMMENT ON FUNCTION etl.write_rows IS 'Writes rows one by one, for the loader, where PostgreSQL refuses some.';
