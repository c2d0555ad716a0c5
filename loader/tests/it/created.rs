//! Tables that the loader creates, and their statistics.

use common::job::Target;
use ledger::Store;
use loader::target;

use crate::support::{
    Shape, address, execute, ledger_database, loader, refusal, request, shape, text,
};

/// Roles and tablespaces are of the whole server, so that their names are those of the test's database.
#[tokio::test]
async fn created_table_has_its_grants_comment_and_tablespace() {
    let database = ledger_database().await;
    let (pool, name) = (&database.pool, &database.name);
    let (role, space) = (format!("Reader {name}"), format!("Space {name}"));
    let mut t = shape("t", &["a text"], &["a"]);
    t.target = Target {
        grants: vec![role.clone(), "public".into()],
        comment: Some("it's the clicks".into()),
        tablespace: Some(space.clone()),
        ..t.target
    };
    let load = async |shape: &Shape, run: &str| {
        request(pool, run).await;
        let batch = shape.batch(run, 0, &[vec![Some("x")]]);
        refusal(&loader(&database), pool, &batch).await
    };
    let refused = load(&t, "no-tablespace-yet").await;
    assert!(
        refused.contains(&format!("GRANT CREATE ON TABLESPACE \"{space}\"")),
        "{refused}"
    );
    let make = format!("CREATE TABLESPACE \"{space}\" LOCATION ''");
    let mut session = pool.acquire().await.unwrap();
    for statement in ["SET allow_in_place_tablespaces = on", &make] {
        sqlx::query(sqlx::AssertSqlSafe(statement.to_owned()))
            .execute(&mut *session)
            .await
            .unwrap();
    }
    drop(session);
    let refused = load(&t, "no-role-yet").await;
    assert!(
        refused.contains(&format!("run: CREATE ROLE \"{role}\"")),
        "{refused}"
    );
    execute(pool, &format!("CREATE ROLE \"{role}\"")).await;
    request(pool, "r").await;
    let batch = t.batch("r", 0, &[vec![Some("x")]]);
    loader(&database).handle(&batch).await.unwrap();
    let may = format!(
        "SELECT has_table_privilege('{role}', 't', 'SELECT') AND NOT has_table_privilege('{role}', 't', 'INSERT')"
    );
    assert_eq!(text(pool, &may).await, "true");
    let everybody = "SELECT count(*) FROM pg_class, aclexplode(relacl) a WHERE oid = 't'::regclass AND a.grantee = 0";
    assert_eq!(text(pool, everybody).await, "1");
    assert_eq!(
        text(pool, "SELECT obj_description('t'::regclass)").await,
        "it's the clicks"
    );
    let of = "SELECT spcname FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace WHERE c.oid = 't'::regclass";
    assert_eq!(text(pool, of).await, space);
    // An existing table is taken as it is.
    let mut other = t.clone();
    other.target.grants = vec!["nobody at all".into()];
    request(pool, "again").await;
    let batch = other.batch("again", 0, &[vec![Some("y")]]);
    loader(&database).handle(&batch).await.unwrap();
    execute(pool, &format!("DROP TABLE t; DROP ROLE \"{role}\"")).await;
    let drop = sqlx::AssertSqlSafe(format!("DROP TABLESPACE \"{space}\""));
    sqlx::query(drop).execute(pool).await.unwrap();
}

#[tokio::test]
async fn target_is_analyzed_once_after_a_large_load() {
    let database = ledger_database().await;
    let pool = &database.pool;
    let store = Store::new(&address(&database.url), "analyze", 2);
    execute(
        pool,
        "CREATE TABLE first (n bigint) WITH (autovacuum_enabled = off); CREATE TABLE large (n bigint) WITH (autovacuum_enabled = off);
         CREATE TABLE other (n bigint) WITH (autovacuum_enabled = off); CREATE TABLE small (n bigint)",
    )
    .await;
    for table in ["first", "large", "small"] {
        request(pool, table).await;
        execute(pool, &format!("UPDATE etl.runs SET target_table = 'public.{table}', state = 'completed', finished_at = now(), batches_expected = 1, rows_expected = 1 WHERE run_id = '{table}'")).await;
    }
    execute(
        pool,
        "INSERT INTO first SELECT generate_series(1, 100000); INSERT INTO large SELECT generate_series(1, 100000); INSERT INTO other SELECT generate_series(1, 100000);
         INSERT INTO small VALUES (1); SELECT pg_stat_force_next_flush()",
    )
    .await;
    let counted = "SELECT count(*) FROM pg_stat_all_tables WHERE n_mod_since_analyze >= 100000";
    testkit::wait_until("the rows to be counted", testkit::TIMEOUT, async || {
        text(pool, counted).await == "3"
    })
    .await;
    // One that cannot be analyzed keeps no other from it.
    let mut session = pool.begin().await.unwrap();
    sqlx::query("LOCK first IN SHARE MODE")
        .execute(&mut *session)
        .await
        .unwrap();
    target::analyze(&store).await.unwrap_err();
    session.rollback().await.unwrap();
    let analyzed = target::analyze(&store).await.unwrap();
    let names: Vec<_> = analyzed.iter().map(loader::ddl::TableName::sql).collect();
    assert_eq!(names, ["\"public\".\"first\""]);
    let known = "SELECT reltuples FROM pg_class WHERE oid = 'public.large'::regclass";
    assert_eq!(text(pool, known).await, "100000");
    testkit::wait_until("nothing to be due", testkit::TIMEOUT, async || {
        target::analyze(&store).await.unwrap().is_empty()
    })
    .await;
    store.close().await;
}
