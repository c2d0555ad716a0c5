//! Every mode, with any order of batches: the same table and the same ledger.

use common::job::{Commit, Duplicates, Mode, Target, Window};
use common::message::ValidBatch;
use loader::load::Outcome;
use loader::{completion, target};
use sqlx::PgPool;
use testkit::servers::Database;

use crate::support::{
    Shape, assert_committed, balance_of, execute, extracted, ledger_database, loader, replayed,
    request_for, shape, text, with_generation, with_rejected,
};

/// A mode with its settings, and the expected table: key, value and first row of the batch of each row.
#[derive(Clone)]
pub(crate) struct Setup {
    name: &'static str,
    pub(crate) target: Target,
    table: &'static str,
    /// Of seven accepted rows.
    deduplicated: u32,
}

/// Each table has two rows before the run: `a` with 100, inside of the window, and `z` outside of it.
const APPENDED: &str = "a1:0 a3:0 a6:6 a100: b2:0 b4:4 c5:4 d7:6 z900:";
const UPSERTED: &str = "a6:6 b4:4 c5:4 d7:6 z900:";
const INSERTED: &str = "a100: b2:0 c5:4 d7:6 z900:";
const REPLACED: &str = "a1:0 a3:0 a6:6 b2:0 b4:4 c5:4 d7:6";
const REPLACED_WINDOW: &str = "a1:0 a3:0 a6:6 b2:0 b4:4 c5:4 d7:6 z900:";

pub(crate) fn setups() -> Vec<Setup> {
    use Commit::{Batch, Run};
    let keyed = |mode, commit| Target {
        mode,
        commit,
        key: vec!["k".into()],
        ..Target::default()
    };
    let plain = |mode, commit| Target {
        mode,
        commit,
        ..Target::default()
    };
    let window = Window::parse("d between '2018-04-02' and '2018-04-05'").unwrap();
    let setup = |name, target, table, deduplicated| Setup {
        name,
        target,
        table,
        deduplicated,
    };
    vec![
        setup("append", plain(Mode::Append, Batch), APPENDED, 0),
        setup("append_run", plain(Mode::Append, Run), APPENDED, 0),
        setup("upsert", keyed(Mode::Upsert, Batch), UPSERTED, 3),
        setup("upsert_run", keyed(Mode::Upsert, Run), UPSERTED, 3),
        setup("insert", keyed(Mode::InsertOnly, Batch), INSERTED, 4),
        setup("insert_run", keyed(Mode::InsertOnly, Run), INSERTED, 4),
        setup("replace", plain(Mode::Replace, Run), REPLACED, 0),
        setup(
            "replace_window",
            Target {
                replace_where: Some(window),
                ..plain(Mode::Replace, Run)
            },
            REPLACED_WINDOW,
            0,
        ),
    ]
}

impl Setup {
    fn shape(&self, table: &str) -> Shape {
        let mut shape = shape(table, &["k text", "d date", "v bigint"], &[]);
        shape.target = Target {
            table: table.into(),
            ..self.target.clone()
        };
        shape
    }

    fn batches(&self, table: &str, run: &str) -> Vec<ValidBatch> {
        let shape = self.shape(table);
        let row = |key: &'static str, day: &'static str, value: &'static str| {
            vec![Some(key), Some(day), Some(value)]
        };
        let first = [
            row("a", "2018-04-02", "1"),
            row("b", "2018-04-02", "2"),
            row("a", "2018-04-02", "3"),
        ];
        let first = with_rejected(shape.batch(run, 0, &first), "min", &[("k", Some("a"))]);
        let second = [row("b", "2018-04-03", "4"), row("c", "2018-04-03", "5")];
        let third = [row("a", "2018-04-04", "6"), row("d", "2018-04-05", "7")];
        vec![
            first,
            shape.batch(run, 4, &second),
            shape.batch(run, 6, &third),
        ]
    }

    /// A run and its table, which has earlier rows.
    pub(crate) async fn prepared(&self, pool: &PgPool, case: &str) -> (String, Vec<ValidBatch>) {
        let (table, run) = (
            format!("{}_{case}", self.name),
            format!("{}-{case}", self.name),
        );
        let key = if self.target.key.is_empty() {
            ""
        } else {
            " PRIMARY KEY"
        };
        execute(
            pool,
            &format!(
                "CREATE TABLE {table} (k text{key}, d date, v bigint, _batch bigint);
                 INSERT INTO {table} VALUES ('a', '2018-04-02', 100), ('z', '2018-04-09', 900)"
            ),
        )
        .await;
        let batches = self.batches(&table, &run);
        request_for(pool, &run, &batches[0].target).await;
        (run, batches)
    }

    pub(crate) async fn assert_loaded(&self, pool: &PgPool, case: &str) {
        let (table, run) = (
            format!("{}_{case}", self.name),
            format!("{}-{case}", self.name),
        );
        let rows = text(pool, &content(&table)).await;
        assert_eq!(rows, self.table, "{table}");
        assert_eq!(
            balance_of(pool, &run).await,
            format!(
                "completed expected 8 extracted 8 loaded 7 deduplicated {} rejected 1 balanced",
                self.deduplicated
            ),
            "{table}"
        );
        let live = format!(
            "SELECT count(*) FROM etl.rejected_rows JOIN etl.runs r USING (run_id, generation) WHERE run_id = '{run}'"
        );
        assert_eq!(text(pool, &live).await, "1", "{table}");
    }
}

fn content(table: &str) -> String {
    format!(
        "SELECT string_agg(concat(k, v, ':', etl.first_row(_batch)), ' ' ORDER BY k, v) FROM {table}"
    )
}

/// Runs a case in every mode, each in its own database.
async fn every_setup(case: impl AsyncFn(Setup, Database)) {
    for setup in setups() {
        Box::pin(case(setup, ledger_database().await)).await;
    }
}

#[tokio::test]
async fn batches_in_order_in_reverse_and_after_the_event_give_the_same_table() {
    every_setup(async |setup, database| {
        let (pool, loader) = (&database.pool, loader(&database));
        let (run, batches) = setup.prepared(pool, "fresh").await;
        for batch in &batches {
            loader.handle(batch).await.unwrap();
        }
        loader.handle_event(&extracted(&run, 3, 8)).await.unwrap();
        setup.assert_loaded(pool, "fresh").await;

        let (run, batches) = setup.prepared(pool, "reverse").await;
        loader.handle_event(&extracted(&run, 3, 8)).await.unwrap();
        for batch in batches.iter().rev() {
            loader.handle(batch).await.unwrap();
        }
        setup.assert_loaded(pool, "reverse").await;
    })
    .await;
}

#[tokio::test]
async fn redelivery_at_any_point_changes_nothing() {
    every_setup(async |setup, database| {
        let (pool, loader) = (&database.pool, loader(&database));
        let (run, batches) = setup.prepared(pool, "again").await;
        for (place, batch) in batches.iter().enumerate() {
            loader.handle(batch).await.unwrap();
            for before in &batches[..=place] {
                assert_eq!(loader.handle(before).await.unwrap(), Outcome::Duplicate);
            }
        }
        for _ in 0..2 {
            loader.handle_event(&extracted(&run, 3, 8)).await.unwrap();
            for batch in &batches {
                assert_eq!(loader.handle(batch).await.unwrap(), Outcome::Duplicate);
            }
            setup.assert_loaded(pool, "again").await;
        }
    })
    .await;
}

#[tokio::test]
async fn two_loaders_at_once_give_the_same_table() {
    Box::pin(every_setup(async |setup, database| {
        let (pool, one, two) = (&database.pool, loader(&database), loader(&database));
        for round in 0..3 {
            let case = format!("two{round}");
            let (run, batches) = setup.prepared(pool, &case).await;
            let told = extracted(&run, 3, 8);
            let (a, b, c, d) = tokio::join!(
                one.handle(&batches[2]),
                two.handle(&batches[0]),
                async {
                    one.handle(&batches[1]).await?;
                    one.handle(&batches[0]).await
                },
                two.handle_event(&told),
            );
            a.unwrap();
            b.unwrap();
            c.unwrap();
            d.unwrap();
            // Concurrent attempts to complete the run may block one another: the sweep repeats the check.
            for run in ledger::completion::candidates(&one.store).await.unwrap() {
                completion::try_complete(&one.store, &run).await.unwrap();
            }
            setup.assert_loaded(pool, &case).await;
        }
    }))
    .await;
}

#[tokio::test]
async fn replay_from_any_batch_gives_the_same_table() {
    every_setup(async |setup, database| {
        let (pool, loader) = (&database.pool, loader(&database));
        for loaded in 0..=3 {
            let case = format!("replay{loaded}");
            let (run, batches) = setup.prepared(pool, &case).await;
            for batch in &batches[..loaded] {
                loader.handle(batch).await.unwrap();
            }
            loader.handle_event(&extracted(&run, 3, 8)).await.unwrap();
            for generation in 1..=2 {
                replayed(pool, &run).await;
                for batch in batches.iter().rev() {
                    assert_eq!(loader.handle(batch).await.unwrap(), Outcome::Stale);
                    let batch = with_generation(batch, generation);
                    assert!(matches!(loader.handle(&batch).await.unwrap(), Outcome::Loaded(_)));
                    assert_eq!(loader.handle(&batch).await.unwrap(), Outcome::Duplicate);
                }
                setup.assert_loaded(pool, &case).await;
            }
            target::clean_up(&loader.store).await.unwrap();
            let left = "SELECT count(*) + (SELECT count(*) FROM pg_tables WHERE schemaname = 'etl_staging') FROM etl.staging";
            assert_eq!(text(pool, left).await, "0", "{case}");
        }
    })
    .await;
}

#[tokio::test]
async fn replay_with_stricter_rules_removes_rejected_rows() {
    every_setup(async |setup, database| {
        let (pool, loader) = (&database.pool, loader(&database));
        let (run, batches) = setup.prepared(pool, "rules").await;
        for batch in &batches {
            loader.handle(batch).await.unwrap();
        }
        loader.handle_event(&extracted(&run, 3, 8)).await.unwrap();
        replayed(pool, &run).await;
        let mut batches: Vec<_> = batches
            .iter()
            .map(|batch| with_generation(batch, 1))
            .collect();
        // Now `c` and `d` are rejected.
        for (batch, raw) in [(1_usize, "c"), (2, "d")] {
            let fewer = setup.shape(&format!("{}_rules", setup.name)).batch(
                &run,
                batches[batch].id.first_row,
                &[batches[batch]
                    .rows
                    .row(0)
                    .to_vec()
                    .iter()
                    .map(Option::as_deref)
                    .collect()],
            );
            let fewer = with_rejected(fewer, "max", &[("k", Some(raw))]);
            batches[batch] = with_generation(&fewer, 1);
        }
        for batch in &batches {
            loader.handle(batch).await.unwrap();
        }
        let wanted: Vec<_> = setup
            .table
            .split(' ')
            .filter(|row| !row.starts_with(['c', 'd']))
            .collect();
        let rows = text(pool, &content(&format!("{}_rules", setup.name))).await;
        assert_eq!(rows, wanted.join(" "), "{}", setup.name);
        assert!(
            balance_of(pool, &run)
                .await
                .starts_with("completed expected 8 extracted 8 loaded 5"),
            "{}",
            setup.name
        );
    })
    .await;
}

#[tokio::test]
async fn partial_replay_leaves_the_other_batches_unchanged() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let setup = setups().remove(0);
    let (run, batches) = setup.prepared(pool, "part").await;
    for batch in &batches {
        loader.handle(batch).await.unwrap();
    }
    loader.handle_event(&extracted(&run, 3, 8)).await.unwrap();
    replayed(pool, &run).await;
    // The statement of `etl replay --rows 4..5`, in the same transaction.
    let carried =
        format!("UPDATE etl.batches SET generation = 1 WHERE run_id = '{run}' AND first_row <> 4");
    execute(pool, &carried).await;
    let rejected =
        format!("SELECT count(*) FROM etl.rejected_rows WHERE run_id = '{run}' AND generation = 1");
    assert_eq!(text(pool, &rejected).await, "1");
    let kept = "SELECT string_agg(ctid::text, ' ' ORDER BY ctid) FROM append_part WHERE etl.first_row(_batch) <> 4";
    let before = text(pool, kept).await;
    assert_eq!(
        loader
            .handle(&with_generation(&batches[0], 1))
            .await
            .unwrap(),
        Outcome::Duplicate
    );
    // The check against the neighbours still applies.
    let mut out_of_line = with_generation(&batches[1], 1);
    out_of_line.id.first_row = 5;
    assert!(loader.handle(&out_of_line).await.is_err());
    loader
        .handle(&with_generation(&batches[1], 1))
        .await
        .unwrap();
    assert_eq!(text(pool, kept).await, before);
    setup.assert_loaded(pool, "part").await;
}

#[tokio::test]
async fn second_run_of_the_same_rows_follows_the_mode() {
    every_setup(async |setup, database| {
        let (pool, loader) = (&database.pool, loader(&database));
        let (first, batches) = setup.prepared(pool, "twice").await;
        let table = format!("{}_twice", setup.name);
        let again = setup.batches(&table, "again");
        for (run, batches) in [(first.as_str(), &batches), ("again", &again)] {
            if run == "again" {
                request_for(pool, run, &batches[0].target).await;
            }
            for batch in batches {
                loader.handle(batch).await.unwrap();
            }
            loader.handle_event(&extracted(run, 3, 8)).await.unwrap();
        }
        let rows = text(pool, &content(&table)).await;
        if setup.target.mode == Mode::Append {
            let count = format!("SELECT count(*) FROM {table}");
            assert_eq!(text(pool, &count).await, "16", "{table}");
        } else {
            assert_eq!(rows, setup.table, "{table}");
        }
        // In mode insert_only the second run changes nothing; in the others, the rows of the newer run stay.
        let whose = format!("SELECT count(*) FROM {table} WHERE etl.run_no(_batch) = (SELECT run_no FROM etl.runs WHERE run_id = 'again')");
        let wanted = match setup.target.mode {
            Mode::Append | Mode::Replace => "7",
            Mode::Upsert => "4",
            Mode::InsertOnly => "0",
        };
        assert_eq!(text(pool, &whose).await, wanted, "{table}");
        // A replay of the older run overwrites no row of the newer one.
        let before = text(pool, &format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t")).await;
        replayed(pool, &first).await;
        for batch in &batches {
            loader.handle(&with_generation(batch, 1)).await.unwrap();
        }
        let after = text(pool, &format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM {table} t")).await;
        assert_eq!(after, before, "{table}");
        let state = format!("SELECT state FROM etl.runs WHERE run_id = '{first}'");
        let wanted = if setup.target.mode == Mode::Replace { "superseded" } else { "completed" };
        assert_eq!(text(pool, &state).await, wanted, "{table}");
    })
    .await;
}

#[tokio::test]
async fn insert_only_keeps_the_first_row_of_a_key_in_every_order() {
    let database = ledger_database().await;
    let (pool, loader) = (&database.pool, loader(&database));
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for (number, order) in orders.iter().enumerate() {
        let table = format!("t{number}");
        let mut keys = shape(&table, &["k text", "v bigint"], &["k"]);
        keys.target.mode = Mode::InsertOnly;
        keys.target.duplicates = Duplicates::Last;
        let run = format!("r{number}");
        request_for(pool, &run, &keys.target).await;
        let row = |key: &'static str, value: &'static str| vec![Some(key), Some(value)];
        let batches = [
            keys.batch(&run, 0, &[row("a", "1"), row("a", "2")]),
            keys.batch(&run, 2, &[row("b", "3"), row("a", "4")]),
            keys.batch(&run, 4, &[row("b", "5"), row("c", "6"), row("c", "7")]),
        ];
        for index in order {
            loader.handle(&batches[*index]).await.unwrap();
        }
        loader.handle_event(&extracted(&run, 3, 7)).await.unwrap();
        let rows = text(
            pool,
            &format!(
                "SELECT string_agg(k || v || ':' || etl.first_row(_batch), ' ' ORDER BY k) FROM {table}"
            ),
        )
        .await;
        assert_eq!(rows, "a1:0 b3:2 c6:4", "{order:?}");
        assert_eq!(
            balance_of(pool, &run).await,
            "completed expected 7 extracted 7 loaded 7 deduplicated 4 rejected 0 balanced",
            "{order:?}"
        );
    }
}

#[tokio::test]
async fn reader_never_sees_a_part_of_a_run_committed_as_a_whole() {
    for setup in setups()
        .into_iter()
        .filter(|setup| setup.target.commit == Commit::Run)
    {
        let database = ledger_database().await;
        let (pool, loader) = (&database.pool, loader(&database));
        let (run, batches) = setup.prepared(pool, "polled").await;
        let table = format!("{}_polled", setup.name);
        let before = text(pool, &content(&table)).await;
        let (looks, has_looked) = tokio::sync::oneshot::channel();
        let watch = async {
            let mut looks = Some(looks);
            let mut seen = Vec::new();
            loop {
                let now = text(pool, &content(&table)).await;
                if let Some(looks) = looks.take() {
                    looks.send(()).unwrap();
                }
                if seen.last() != Some(&now) {
                    seen.push(now.clone());
                }
                if now == setup.table {
                    return seen;
                }
            }
        };
        let load = async {
            has_looked.await.unwrap();
            for batch in &batches {
                loader.handle(batch).await.unwrap();
            }
            loader.handle_event(&extracted(&run, 3, 8)).await.unwrap();
        };
        let (seen, ()) = tokio::join!(watch, load);
        assert_eq!(seen, [before, setup.table.to_owned()], "{table}");
        assert_committed(pool, &run).await;
    }
}
