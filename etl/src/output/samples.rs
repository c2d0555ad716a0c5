//! A run in every state, for the snapshots of what is printed.

use ledger::{Query, Run, RunState};

/// A complete run of mode upsert.
pub(crate) fn completed() -> Run {
    Run {
        run_id: "daily-2018-04-02".into(),
        run_no: 7,
        job: "clicks".into(),
        parameters: [("from", "2018-04-02"), ("to", "2018-04-02")]
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
        target_table: "public.clicks".into(),
        mode: "upsert".into(),
        commit: "batch".into(),
        state: RunState::Completed,
        query_execution_id: Some("4bcb4933-3458-4a18-8ecc-9a59b114d0c5".into()),
        result_id: Some("4bcb4933-3458-4a18-8ecc-9a59b114d0c5:pages".into()),
        bytes_scanned: Some(14_868_480),
        batches_expected: Some(39),
        rows_expected: Some(83_760),
        rows_read: 83_760,
        batches: 39,
        rows_extracted: 83_760,
        rows_loaded: 82_070,
        rows_deduplicated: 12,
        rows_rejected: 1_690,
        balanced: true,
        requested_by: Some("ana".into()),
        requested_at: "2018-04-03T02:00:00.000Z".into(),
        started_at: Some("2018-04-03T02:00:01.500Z".into()),
        finished_at: Some("2018-04-03T02:00:11.500Z".into()),
        seconds: 11.5,
        working_seconds: Some(10.0),
        ..Run::default()
    }
}

/// The same run after a replay, two days later.
pub(crate) fn replayed() -> Run {
    Run {
        generation: 1,
        rows_loaded: 83_760,
        rows_rejected: 0,
        replayed_at: Some("2018-04-05T09:00:00.000Z".into()),
        replayed_by: Some("bob".into()),
        finished_at: Some("2018-04-05T09:00:04.250Z".into()),
        seconds: 4.25,
        working_seconds: Some(4.25),
        ..completed()
    }
}

/// A run in each state, and a blocked one.
#[expect(clippy::too_many_lines, reason = "a table of runs")]
pub(crate) fn runs() -> Vec<Run> {
    let named = |state: RunState| Run {
        run_id: format!("a-{state}-run"),
        state,
        ..completed()
    };
    let open = |state: RunState| Run {
        finished_at: None,
        balanced: false,
        rows_deduplicated: 0,
        ..named(state)
    };
    let requested = Run {
        query_execution_id: None,
        started_at: None,
        bytes_scanned: None,
        batches_expected: None,
        rows_expected: None,
        rows_read: 0,
        batches: 0,
        rows_extracted: 0,
        rows_loaded: 0,
        rows_rejected: 0,
        seconds: 0.4,
        working_seconds: None,
        ..open(RunState::Requested)
    };
    let running = Run {
        batches_expected: None,
        rows_expected: None,
        batches: 12,
        rows_loaded: 25_000,
        rows_rejected: 40,
        ..open(RunState::Running)
    };
    let blocked = Run {
        run_id: "a-blocked-run".into(),
        dead_letters: 2,
        batches: 37,
        rows_loaded: 80_000,
        ..open(RunState::Running)
    };
    let held = Run {
        held_because: Some("1,690 of 83,760 rows were rejected, and max_rejected is 1%".into()),
        balanced: true,
        commit: "run".into(),
        ..open(RunState::Held)
    };
    let failed = Run {
        failure: Some("SYNTAX_ERROR: line 1:8: Column 'x' cannot be resolved".into()),
        ..requested.clone()
    };
    let failed = Run {
        run_id: "a-failed-run".into(),
        state: RunState::Failed,
        finished_at: completed().finished_at,
        ..failed
    };
    let cancelled = Run {
        balanced: false,
        rows_loaded: 0,
        rows_deduplicated: 0,
        rows_dropped: 25_000,
        rows_rejected: 40,
        batches: 12,
        decided_by: Some("ana".into()),
        decision: Some("cancelled: the wrong week".into()),
        ignored_messages: 3,
        ..named(RunState::Cancelled)
    };
    vec![
        requested,
        running,
        blocked,
        held,
        completed(),
        failed,
        cancelled,
        named(RunState::Superseded),
    ]
}

/// The query of a run that succeeded.
pub(crate) fn query() -> Query {
    Query {
        query_execution_id: "4bcb4933-3458-4a18-8ecc-9a59b114d0c5".into(),
        generation: 0,
        attempt: 1,
        principal: Some("arn:aws:sts::123456789012:assumed-role/etl/i-0".into()),
        region: Some("eu-central-1".into()),
        state: "succeeded".into(),
        bytes_scanned: 14_868_480,
        reused: false,
        started_at: "2018-04-09T10:00:01.000Z".into(),
        ended_at: Some("2018-04-09T10:00:04.000Z".into()),
    }
}
