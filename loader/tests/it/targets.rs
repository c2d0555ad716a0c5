//! Everything that can be wrong with an existing target: said before a run for the role of the loader, not of the user; said by
//! the loader; and gone once the statement that is said was run. In every mode.

use common::job::{Commit, Mode};
use ledger::Address;
use ledger::Store;
use loader::ddl::Known;
use loader::load::Loader;
use loader::target::catalog;
use sqlx::PgPool;
use testkit::servers::Database;

use crate::support::{
    Shape, address, execute, extracted, ledger_database, load_or_refusal, refusal, request_for,
    shape, text,
};

/// A database whose loader works as a role that has privileges on the ledger alone.
struct Guest {
    database: Database,
    role: String,
    loader: Loader,
    /// Of another role: the one that asks.
    asker: Store,
}

/// The table that fits.
const TABLE: &str = "CREATE TABLE t (k bigint PRIMARY KEY, v text, _batch bigint NOT NULL); GRANT ALL ON t TO $role";

/// All ways to write, by the mode and the commit.
const WAYS: [(Mode, Commit); 5] = [
    (Mode::Append, Commit::Batch),
    (Mode::Append, Commit::Run),
    (Mode::Upsert, Commit::Batch),
    (Mode::InsertOnly, Commit::Batch),
    (Mode::Replace, Commit::Run),
];

impl Guest {
    async fn new() -> Self {
        let database = ledger_database().await;
        let role = format!("guest_{}", database.name);
        let guest = Self {
            loader: Loader::new(&Self::address(&database, &role), vec!["public".into()]),
            asker: Store::new(&address(&database.url), "asker", 2),
            role,
            database,
        };
        guest
            .execute(
                "CREATE ROLE $role LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA etl TO $role;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO $role; GRANT USAGE, CREATE ON SCHEMA etl_staging TO $role",
            )
            .await;
        guest.loader.store.record_loader(&[]).await.unwrap();
        guest
    }

    fn address(database: &Database, role: &str) -> Address {
        let mut guest = url::Url::parse(&database.url).unwrap();
        guest.set_username(role).unwrap();
        guest.set_password(Some("x")).unwrap();
        address(guest.as_str())
    }

    fn pool(&self) -> &PgPool {
        &self.database.pool
    }

    /// Executes statements of the owner, in which `$role` and `$database` are names.
    async fn execute(&self, sql: &str) {
        let sql = sql.replace("$role", &self.role);
        execute(self.pool(), &sql.replace("$database", &self.database.name)).await;
    }

    /// What is said before a run: the reasons to refuse it, and those to refuse a replay.
    async fn planned(&self, shape: &Shape) -> (Vec<String>, Vec<String>) {
        let schemas = ["public".to_owned()];
        let (target, columns) = (&shape.target, &shape.columns);
        let planned = catalog::plan(
            &self.asker,
            target,
            columns,
            Known::Declared,
            &schemas,
            ("job", None),
        )
        .await;
        let planned = planned.unwrap();
        assert_eq!(planned.roles.checked(), std::slice::from_ref(&self.role));
        let said = |all: Vec<loader::ddl::Refusal>| all.iter().map(ToString::to_string).collect();
        (
            planned.change.err().map(said).unwrap_or_default(),
            said(planned.later),
        )
    }

    /// Loads a row in a run of its own. The error is what the loader says.
    async fn load(&self, shape: &Shape, run: &str) -> Result<(), String> {
        request_for(self.pool(), run, &shape.target).await;
        let batch = shape.batch(run, 0, &[vec![Some("1"), Some("x")]]);
        load_or_refusal(&self.loader, self.pool(), &batch).await?;
        let end = extracted(run, 1, 1);
        self.loader.handle_event(&end).await.unwrap();
        let state = format!(
            "SELECT concat_ws(' ', state, held_because) FROM etl.runs WHERE run_id = '{run}'"
        );
        assert_eq!(text(self.pool(), &state).await, "completed");
        Ok(())
    }

    async fn clean_up(self) {
        self.loader.store.close().await;
        self.asker.close().await;
        let drop = format!("DROP OWNED BY {0}; DROP ROLE {0}", self.role);
        execute(self.pool(), &drop).await;
    }
}

fn way((mode, commit): (Mode, Commit)) -> Shape {
    let key: &[&str] = if mode.has_key() { &["k"] } else { &[] };
    let mut shape = shape("t", &["k bigint", "v text"], key);
    shape.target.mode = mode;
    shape.target.commit = commit;
    shape
}

/// The statement at the end of a refusal, as a person pastes it.
fn statement(sentence: &str) -> &str {
    let ends = ["run: ", "superuser: ", "for all rows: "];
    let starts = ends
        .iter()
        .filter_map(|end| Some(sentence.rfind(end)? + end.len()));
    let statement = &sentence[starts.max().unwrap()..];
    // The other remedy, for who may not grant.
    statement.split(", or run: ").next().unwrap()
}

/// Checks that a target is refused for one reason, in each of these ways, until the statement that is said was run.
async fn refused_until_fixed(ways: &[(Mode, Commit)], setup: &str, words: &str) {
    for &one in ways {
        let (guest, shape) = (Guest::new().await, way(one));
        guest.execute(&format!("{TABLE}; {setup}")).await;
        let (refused, _) = guest.planned(&shape).await;
        let [sentence] = &refused[..] else {
            panic!("{one:?} {words}: {refused:?}");
        };
        assert!(sentence.contains(words), "{one:?}: {sentence}");
        let said = guest.load(&shape, "refused").await.unwrap_err();
        // The loader knows all columns, and offers the statement that makes them.
        let said = said.split(", or run: ").next().unwrap();
        assert!(sentence.starts_with(said), "{sentence} / {said}");
        let nothing = "SELECT count(*) FROM etl.batches";
        assert_eq!(text(guest.pool(), nothing).await, "0");
        guest
            .execute(statement(sentence.split(", or create it").next().unwrap()))
            .await;
        assert_eq!(guest.planned(&shape).await.0, [""; 0], "{one:?} {words}");
        guest.load(&shape, "loaded").await.unwrap();
        let rows = "SELECT string_agg(concat_ws(' ', k, v), ', ') FROM public.t";
        assert!(text(guest.pool(), rows).await.starts_with('1'));
        guest.clean_up().await;
    }
}

#[tokio::test]
async fn column_that_postgres_fills_itself_is_refused() {
    let identity = "ALTER TABLE t ALTER k ADD GENERATED ALWAYS AS IDENTITY";
    refused_until_fixed(&WAYS, identity, "is GENERATED ALWAYS AS IDENTITY").await;
    let generated = "ALTER TABLE t DROP v, ADD v text GENERATED ALWAYS AS ('y') STORED";
    refused_until_fixed(&WAYS, generated, "is computed by Postgres").await;
}

#[tokio::test]
async fn sequence_that_the_role_may_not_use_is_refused() {
    let serial = "ALTER TABLE t ADD id serial";
    refused_until_fixed(
        &WAYS,
        serial,
        "takes its values from the sequence public.t_id_seq",
    )
    .await;
}

#[tokio::test]
async fn row_level_security_for_the_role_is_refused() {
    let policies = "ALTER TABLE t ENABLE ROW LEVEL SECURITY";
    refused_until_fixed(&WAYS, policies, "BYPASSRLS").await;
}

#[tokio::test]
async fn relation_that_is_no_table_is_refused() {
    let view = "ALTER TABLE t RENAME TO base; CREATE VIEW t AS SELECT * FROM base; GRANT CREATE ON SCHEMA public TO $role";
    refused_until_fixed(&WAYS, view, "is a view").await;
    let foreign = "DROP TABLE t; CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far;
        CREATE FOREIGN TABLE t (k bigint, v text, _batch bigint) SERVER far; GRANT CREATE ON SCHEMA public TO $role";
    refused_until_fixed(&WAYS[..1], foreign, "is a foreign table").await;
}

#[tokio::test]
async fn foreign_partition_is_refused() {
    let ways = [WAYS[0], WAYS[1], WAYS[4]];
    let partition = "DROP TABLE t; CREATE TABLE t (k bigint, v text, _batch bigint) PARTITION BY RANGE (k); CREATE TABLE near PARTITION OF t DEFAULT;
        CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far; GRANT ALL ON t TO $role;
        CREATE FOREIGN TABLE far PARTITION OF t FOR VALUES FROM (100) TO (200) SERVER far";
    refused_until_fixed(&ways, partition, "public.far is a partition of").await;
    let child = "CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far; CREATE FOREIGN TABLE far () INHERITS (t) SERVER far";
    refused_until_fixed(&ways[..1], child, "NO INHERIT public.t").await;
}

#[tokio::test]
async fn unlogged_table_or_partition_is_refused() {
    refused_until_fixed(&WAYS, "ALTER TABLE t SET UNLOGGED", "public.t is unlogged").await;
    let partition = "DROP TABLE t; CREATE TABLE t (k bigint PRIMARY KEY, v text, _batch bigint) PARTITION BY RANGE (k);
        CREATE TABLE logged PARTITION OF t FOR VALUES FROM (0) TO (100); GRANT ALL ON t TO $role;
        CREATE UNLOGGED TABLE one PARTITION OF t FOR VALUES FROM (100) TO (200); CREATE UNLOGGED TABLE two PARTITION OF t FOR VALUES FROM (200) TO (300)";
    refused_until_fixed(&WAYS, partition, "public.one, public.two is unlogged").await;
}

#[tokio::test]
async fn partitioned_table_without_a_partition_is_refused() {
    let partitioned = "DROP TABLE t; CREATE TABLE t (k bigint PRIMARY KEY, v text, _batch bigint) PARTITION BY RANGE (k); GRANT ALL ON t TO $role";
    refused_until_fixed(&WAYS, partitioned, "has no partition").await;
}

#[tokio::test]
async fn rule_is_refused() {
    let insert = "CREATE RULE other AS ON INSERT TO t DO INSTEAD NOTHING";
    refused_until_fixed(&WAYS, insert, "the rule other").await;
    // ON CONFLICT is refused even with a disabled one.
    let update =
        "CREATE RULE \"Up\" AS ON UPDATE TO t DO ALSO NOTHING; ALTER TABLE t DISABLE RULE \"Up\"";
    refused_until_fixed(&WAYS, update, "the rule \"Up\"").await;
}

#[tokio::test]
async fn published_table_without_a_replica_identity_is_refused_where_rows_change() {
    let bare = "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD UNIQUE (k); CREATE PUBLICATION copies FOR TABLE t";
    refused_until_fixed(&WAYS[2..], bare, "is in the publication copies").await;
    let partition = "DROP TABLE t; CREATE TABLE t (k bigint UNIQUE, v text, _batch bigint) PARTITION BY RANGE (k);
        CREATE TABLE part PARTITION OF t DEFAULT; GRANT ALL ON t TO $role; CREATE PUBLICATION copies FOR ALL TABLES";
    refused_until_fixed(&WAYS[2..], partition, "public.part is in the publication").await;
    let guest = Guest::new().await;
    guest.execute(&format!("{TABLE}; {bare}")).await;
    for one in &WAYS[..2] {
        let (refused, later) = guest.planned(&way(*one)).await;
        assert_eq!(refused, [""; 0]);
        assert!(later[0].contains("refuses each DELETE"), "{later:?}");
    }
    guest.clean_up().await;
}

#[tokio::test]
async fn foreign_key_that_cascades_is_refused_where_rows_change() {
    let child = "ALTER TABLE t ADD UNIQUE (v); CREATE TABLE child (v text CONSTRAINT \"of t\" REFERENCES t (v) ON UPDATE CASCADE ON DELETE SET NULL)";
    refused_until_fixed(&WAYS[2..], child, "\"of t\" of public.child refers to").await;
    let guest = Guest::new().await;
    guest.execute(&format!("{TABLE}; {child}")).await;
    for one in WAYS {
        let mut shape = way(one);
        let (refused, later) = guest.planned(&shape).await;
        let said = [refused, later].concat();
        assert!(said[0].contains("allow_cascades = true"), "{said:?}");
        shape.target.allow_cascades = true;
        assert_eq!(guest.planned(&shape).await, (vec![], vec![]), "{one:?}");
    }
    guest.clean_up().await;
}

/// What is granted by the sentences is enough for the mode, and no sentence names more than it uses.
#[tokio::test]
async fn privileges_are_those_that_the_mode_uses() {
    let all = "REVOKE ALL ON t FROM $role";
    for (one, privileges) in WAYS.into_iter().zip([
        "GRANT INSERT ON",
        "GRANT SELECT, INSERT ON",
        "GRANT SELECT, INSERT, UPDATE ON",
        "GRANT SELECT, INSERT, UPDATE ON",
        "GRANT SELECT, INSERT, DELETE ON",
    ]) {
        refused_until_fixed(&[one], all, privileges).await;
    }
    for (privilege, ways) in [
        ("INSERT", &WAYS[..]),
        ("SELECT", &WAYS[1..]),
        ("UPDATE", &WAYS[2..4]),
        ("DELETE", &WAYS[4..]),
    ] {
        let revoke = format!("REVOKE {privilege} ON t FROM $role");
        refused_until_fixed(ways, &revoke, privilege).await;
    }
    let guest = Guest::new().await;
    guest
        .execute(&format!("{TABLE}; REVOKE DELETE ON t FROM $role"))
        .await;
    for one in &WAYS[..4] {
        let (refused, later) = guest.planned(&way(*one)).await;
        assert_eq!(refused, [""; 0]);
        assert!(later[0].contains("GRANT SELECT, DELETE ON"), "{later:?}");
    }
    // Of a table, those of its columns will do, where the table itself can be locked.
    guest.execute("REVOKE ALL ON t FROM $role; GRANT SELECT, UPDATE (k, v, _batch) ON t TO $role; GRANT INSERT ON t TO $role").await;
    let upsert = way(WAYS[2]);
    assert_eq!(guest.planned(&upsert).await.0, [""; 0]);
    guest.load(&upsert, "by_columns").await.unwrap();
    guest.clean_up().await;
}

#[tokio::test]
async fn privileges_around_the_table_are_those_that_the_mode_uses() {
    let schema = "REVOKE USAGE ON SCHEMA public FROM public";
    refused_until_fixed(&WAYS, schema, "may not use the schema").await;
    let create = "DROP TABLE t; REVOKE CREATE ON SCHEMA public FROM public";
    refused_until_fixed(&WAYS, create, "may not create the table").await;
    let temporary = "REVOKE TEMPORARY ON DATABASE $database FROM public";
    refused_until_fixed(&WAYS[2..4], temporary, "GRANT TEMPORARY ON DATABASE").await;
    let staging = "REVOKE CREATE ON SCHEMA etl_staging FROM $role";
    refused_until_fixed(&[WAYS[1], WAYS[4]], staging, "ON SCHEMA etl_staging").await;
    let guest = Guest::new().await;
    guest.execute(&format!("{TABLE}; {staging}")).await;
    let (refused, later) = guest.planned(&way(WAYS[2])).await;
    assert_eq!(refused, [""; 0]);
    assert!(later[0].contains("ON SCHEMA etl_staging"), "{later:?}");
    assert_eq!(guest.planned(&way(WAYS[0])).await, (vec![], vec![]));
    guest.clean_up().await;
}

/// The role of the sessions counts, with what it inherits; an attribute such as BYPASSRLS is not inherited.
#[tokio::test]
async fn role_is_that_of_the_sessions_of_loaders() {
    let guest = Guest::new().await;
    let (role, writer) = (guest.role.clone(), format!("writer_{}", guest.role));
    guest
        .execute(&format!(
            "CREATE TABLE t (k bigint, v text, _batch bigint); CREATE ROLE {writer} BYPASSRLS; GRANT {writer} TO {role}; GRANT INSERT, SELECT, DELETE ON t TO {writer}"
        ))
        .await;
    let append = way(WAYS[0]);
    assert_eq!(guest.planned(&append).await, (vec![], vec![]));
    guest.load(&append, "inherited").await.unwrap();
    guest
        .execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
        .await;
    assert!(guest.planned(&append).await.0[0].contains("BYPASSRLS"));
    guest
        .execute(&format!(
            "ALTER TABLE t DISABLE ROW LEVEL SECURITY; ALTER ROLE {role} NOINHERIT"
        ))
        .await;
    assert!(guest.planned(&append).await.0[0].contains("GRANT INSERT"));
    // Sessions that work as another role than they log in as.
    guest
        .execute(&format!(
            "ALTER ROLE {role} SET role = {writer}; GRANT USAGE ON SCHEMA etl TO {writer}; GRANT ALL ON ALL TABLES IN SCHEMA etl TO {writer}"
        ))
        .await;
    let loader = Loader::new(
        &Guest::address(&guest.database, &role),
        vec!["public".into()],
    );
    loader.store.record_loader(&[]).await.unwrap();
    let roles = guest.asker.loader_roles().await.unwrap();
    assert_eq!(roles.checked(), [role.clone(), writer.clone()]);
    let note = roles.note().unwrap();
    assert!(
        note.contains("several roles") && note.contains(&writer),
        "{note}"
    );
    // A role that no loader uses any more does not count, nor does one that was dropped.
    guest.execute("UPDATE etl.loaders SET seen_at = seen_at - interval '11 minutes' WHERE role_name LIKE 'guest%'; INSERT INTO etl.loaders VALUES ('nobody at all')").await;
    let roles = guest.asker.loader_roles().await.unwrap();
    assert_eq!(
        (roles.checked(), roles.note()),
        (&[writer.clone()][..], None)
    );
    guest.execute("DELETE FROM etl.loaders").await;
    let roles = guest.asker.loader_roles().await.unwrap();
    assert!(
        roles
            .note()
            .unwrap()
            .contains("no loader has recorded its role yet")
    );
    assert_eq!(roles.names(), None);
    loader.store.close().await;
    guest
        .execute(&format!("DROP OWNED BY {writer}; DROP ROLE {writer}"))
        .await;
    guest.clean_up().await;
}

/// What speaks against a table shows once it is there.
#[tokio::test]
async fn table_that_is_published_as_it_is_created_is_refused_before_its_rows() {
    let database = ledger_database().await;
    let pool = &database.pool;
    execute(pool, "CREATE PUBLICATION copies FOR ALL TABLES").await;
    let loader = Loader::new(&address(&database.url), vec!["public".into()]);
    let mut shape = shape("made", &["k bigint"], &[]);
    shape.target.mode = Mode::Replace;
    shape.target.commit = Commit::Run;
    request_for(pool, "r", &shape.target).await;
    let batch = shape.batch("r", 0, &[vec![Some("1")]]);
    let sentence = refusal(&loader, pool, &batch).await;
    assert!(sentence.contains("REPLICA IDENTITY"), "{sentence}");
    // The statement of the sentence.
    execute(pool, "ALTER TABLE public.made REPLICA IDENTITY FULL").await;
    loader.handle(&batch).await.unwrap();
    loader.handle_event(&extracted("r", 1, 1)).await.unwrap();
    assert_eq!(text(pool, "SELECT state FROM etl.runs").await, "completed");
}
