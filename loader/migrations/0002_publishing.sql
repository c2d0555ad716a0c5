-- Runs that reach their target as a whole, replays, and what a person decided.

ALTER TABLE etl.runs
    ADD COLUMN publish       text NOT NULL DEFAULT 'batch',
    ADD COLUMN target_window text NOT NULL DEFAULT '',
    ADD COLUMN target_bounds jsonb,
    ADD COLUMN published_at  timestamptz,
    ADD COLUMN held_because  text,
    ADD COLUMN approved_at   timestamptz,
    ADD COLUMN requested_by  text,
    ADD COLUMN result_location text,
    ADD COLUMN decided_by    text,
    ADD COLUMN decision      text,
    ADD COLUMN limits        jsonb,
    ADD CONSTRAINT runs_publish_known CHECK (publish IN ('batch', 'run')),
    ADD CONSTRAINT runs_held_has_a_reason CHECK (state <> 'held' OR held_because IS NOT NULL),
    DROP CONSTRAINT runs_state_known,
    DROP CONSTRAINT runs_finished_when_terminal,
    DROP CONSTRAINT runs_completed_is_measured,
    ADD CONSTRAINT runs_state_known CHECK (state IN ('requested', 'running', 'held', 'completed', 'failed', 'cancelled', 'superseded')),
    ADD CONSTRAINT runs_finished_when_terminal CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled', 'superseded'))),
    ADD CONSTRAINT runs_completed_is_measured CHECK (state NOT IN ('held', 'completed', 'superseded') OR batches_expected IS NOT NULL);

COMMENT ON COLUMN etl.runs.mode IS 'What the rows do to the target: append, upsert, insert_only or replace.';
COMMENT ON COLUMN etl.runs.state IS 'requested, running, held (a person decides: etl approve, etl discard), then one of completed, failed, cancelled, superseded. The first of these four stays until a replay.';
-- Which newer runs a replace has to give way to.
CREATE INDEX runs_published ON etl.runs (target_table, run_no) WHERE published_at IS NOT NULL;

COMMENT ON COLUMN etl.runs.publish IS 'When rows reach the target: batch (each batch by itself) or run (all of them in the completing transaction).';
COMMENT ON COLUMN etl.runs.target_window IS 'What part of the target a published replace replaced, as an SQL condition; empty for the whole table.';
COMMENT ON COLUMN etl.runs.target_bounds IS 'The same as data, written when the run is published: an older run whose window overlaps is superseded.';
COMMENT ON COLUMN etl.runs.published_at IS 'When the rows of a run that is published as a whole reached the target.';
COMMENT ON COLUMN etl.runs.held_because IS 'Why the run is held, or was, for a person.';
COMMENT ON COLUMN etl.runs.approved_at IS 'When a person approved the held run; it is then published although it was held.';
COMMENT ON COLUMN etl.runs.requested_by IS 'The user who asked for the run.';
COMMENT ON COLUMN etl.runs.result_location IS 'The object in S3 that Athena wrote the result to, as s3://bucket/key; NULL for a result that was read as pages.';
COMMENT ON COLUMN etl.runs.decided_by IS 'The user who cancelled, approved or discarded the run.';
COMMENT ON COLUMN etl.runs.limits IS 'What bounds a batch of the run: whoever reads its result again has to cut the same batches.';
COMMENT ON COLUMN etl.runs.decision IS 'What that person decided, and why where it was said.';

ALTER TABLE etl.batches
    ADD COLUMN dropped_by  text,
    ADD COLUMN drop_reason text;

COMMENT ON COLUMN etl.batches.dropped_by IS 'The user who gave rows of this batch up.';
COMMENT ON COLUMN etl.batches.drop_reason IS 'Why that person gave them up.';

-- A partial replay carries the batches that it does not touch forward into the new generation.
ALTER TABLE etl.rejected_rows
    DROP CONSTRAINT rejected_rows_run_id_generation_seq_fkey,
    ADD CONSTRAINT rejected_rows_of_a_batch FOREIGN KEY (run_id, generation, seq)
        REFERENCES etl.batches (run_id, generation, seq) ON UPDATE CASCADE;

COMMENT ON COLUMN etl.rejected_rows.raw IS 'The row''s values by column, in the result''s order: as Athena gave them, or in the form that Postgres refused; of a masked column, the mask. json, not jsonb, which would refuse the NUL that a row may have been rejected for. NULL once pruned.';

CREATE SCHEMA etl_staging;
COMMENT ON SCHEMA etl_staging IS 'Rows of runs that reach their target as a whole: one table for each run and generation, gone when the run is over.';

CREATE TABLE etl.staging (
    run_id     text NOT NULL REFERENCES etl.runs (run_id),
    generation integer NOT NULL CHECK (generation >= 0),
    table_name text NOT NULL UNIQUE,
    target     jsonb NOT NULL,
    columns    jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, generation)
);

COMMENT ON TABLE etl.staging IS 'The tables in schema etl_staging, and what it takes to publish each. A row goes with its table.';
COMMENT ON COLUMN etl.staging.target IS 'The target as the batches of this generation have it.';
COMMENT ON COLUMN etl.staging.columns IS 'The columns as the batches of this generation have them.';

CREATE TABLE etl.replays (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id       text NOT NULL REFERENCES etl.runs (run_id),
    generation   integer NOT NULL CHECK (generation > 0),
    source       text NOT NULL CHECK (source IN ('archive', 'athena')),
    seqs         int4multirange NOT NULL,
    job_hash     text NOT NULL,
    job_spec     jsonb NOT NULL,
    state_before text NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    sent_at      timestamptz,
    given_up     text,
    UNIQUE (run_id, generation)
);

COMMENT ON TABLE etl.replays IS 'Each time that a run was put through again. Written, and the run''s generation raised, before the first message is sent; one that was not sent to its end is resumed.';
COMMENT ON COLUMN etl.replays.seqs IS 'The batches that are put through again; the others were carried forward.';
COMMENT ON COLUMN etl.replays.job_spec IS 'The job as it was at the time of the replay.';
COMMENT ON COLUMN etl.replays.state_before IS 'The run''s state when it was asked for.';
COMMENT ON COLUMN etl.replays.given_up IS 'Why it came to nothing: the batches that it had not put through keep what an earlier generation made of them.';
COMMENT ON COLUMN etl.replays.sent_at IS 'When the last message of it was sent; NULL while it is unfinished.';
