//! `extractor check` and `extractor sample`, against an emulator that permits and denies.

use serde_json::Value;
use testkit::cloud::{Answer, Cloud, Fault, Op, QueryState, ResultSet, Workgroup};
use testkit::process::{Finished, Service};

async fn extractor(cloud: &Cloud, arguments: &[&str]) -> Finished {
    with_jobs(cloud, "/nowhere", arguments).await
}

async fn with_jobs(cloud: &Cloud, jobs: &str, arguments: &[&str]) -> Finished {
    let command = Service::new("extractor").envs(cloud.env());
    let command = command.env("ETL_JOBS", jobs);
    let command = arguments.iter().fold(command, |it, one| it.arg(one));
    command.run().await
}

/// The name, level and details of each check.
fn checks(done: &Finished) -> Vec<(String, String, String)> {
    let answer: Value = serde_json::from_str(&done.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = answer.as_array().unwrap().iter();
    let seen = checks.map(|one| {
        let rest = format!("{} {} {}", text(&one["text"]), one["action"], one["remedy"]);
        (text(&one["what"]), text(&one["level"]), rest)
    });
    seen.collect()
}

fn levels(done: &Finished) -> Vec<(String, String)> {
    let all = checks(done).into_iter();
    all.map(|(check, level, _)| (check, level)).collect()
}

const ALL: [&str; 9] = [
    "region",
    "credentials",
    "principal",
    "workgroup",
    "output location",
    "athena:GetQueryExecution",
    "athena:GetQueryResults",
    "athena:StopQueryExecution",
    "s3:GetObject",
];

#[tokio::test]
async fn check_passes_without_a_query() {
    let cloud = Cloud::start().await;
    let done = extractor(&cloud, &["check", "--json"]).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let mut wanted: Vec<_> = ALL.map(|check| (check.to_owned(), "ok".to_owned())).into();
    wanted.push(("athena:StartQueryExecution".into(), "unknown".into()));
    assert_eq!(levels(&done), wanted);
    assert!(cloud.tokens().is_empty(), "a query was started");
    let done = extractor(&cloud, &["check"]).await;
    assert_eq!(done.code, Some(0));
    assert_eq!(done.stdout.lines().count(), wanted.len(), "{}", done.stdout);
    assert!(
        done.stdout.contains("s3://results/prefix/"),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains("access key ..."), "{}", done.stdout);
}

#[tokio::test]
async fn check_names_each_missing_permission_and_continues() {
    let cloud = Cloud::start().await;
    let denied = |status, code, message| Fault::Other {
        status,
        code,
        message,
    };
    cloud.always(
        Op::GetQueryResults,
        denied(
            400,
            "AccessDeniedException",
            "User: arn:aws:iam::123456789012:user/x is not authorized to perform: athena:GetQueryResults on resource: arn:aws:athena:eu:1:workgroup/primary because no identity-based policy allows it",
        ),
    );
    // S3's answer for a missing object, without the permission to list the bucket.
    cloud.always(
        Op::GetObject,
        denied(
            403,
            "AccessDenied",
            "User: arn:aws:iam::123456789012:user/x is not authorized to perform: s3:ListBucket on resource: \"arn:aws:s3:::results\"",
        ),
    );
    cloud.always(Op::StopQueryExecution, Fault::AccessDenied);
    let done = extractor(&cloud, &["check", "--json"]).await;
    assert_eq!(done.code, Some(1), "{}", done.stdout);
    for (check, level, rest) in checks(&done) {
        let missing = match check.as_str() {
            "athena:GetQueryResults" => Some("athena:GetQueryResults"),
            "s3:GetObject" => Some("s3:ListBucket"),
            "athena:StopQueryExecution" => Some("athena:StopQueryExecution"),
            _ => None,
        };
        assert_eq!(level == "wrong", missing.is_some(), "{check}: {rest}");
        if let Some(missing) = missing {
            let wanted = format!("\"{missing}\" \"allow {missing} in the policy");
            assert!(rest.contains(&wanted), "{check}: {rest}");
        }
    }
    // The workgroup itself: its output location is unknown then.
    cloud.always(Op::GetWorkGroup, Fault::AccessDenied);
    let done = extractor(&cloud, &["check"]).await;
    assert_eq!(done.code, Some(1));
    assert!(
        done.stdout.contains("allow athena:GetWorkGroup"),
        "{}",
        done.stdout
    );
}

#[tokio::test]
async fn check_reports_a_common_cause_once() {
    let cloud = Cloud::start().await;
    for (fault, remedy) in [
        (Fault::UnknownClient, "check the AWS credentials"),
        (Fault::ExpiredToken, "renew the credentials"),
        (Fault::SignatureExpired, "set this machine's clock"),
    ] {
        cloud.always(Op::GetWorkGroup, fault);
        let done = extractor(&cloud, &["check", "--json"]).await;
        assert_eq!(done.code, Some(1));
        let found = checks(&done);
        let failed = found.iter().filter(|(_, level, _)| level == "wrong");
        let failed: Vec<_> = failed.collect();
        assert_eq!(failed.len(), 1, "{found:?}");
        assert!(failed[0].2.contains(remedy), "{failed:?}");
        assert_eq!(cloud.count(Op::GetQueryExecution), 0);
    }
    let away = |name: &str, value: &str| {
        let command = Service::new("extractor").arg("check").arg("--json");
        command.envs(cloud.env()).env(name, value).run()
    };
    let done = away("AWS_ENDPOINT_URL", "http://127.0.0.1:1").await;
    let found = format!("{:?}", checks(&done));
    assert!(
        done.code == Some(1) && found.contains("check AWS_REGION"),
        "{found}"
    );
    let done = away("AWS_REGION", "").await;
    assert_eq!(done.code, Some(1));
    assert_eq!(levels(&done), [("region".to_owned(), "wrong".to_owned())]);
    let anonymous = Service::new("extractor")
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .arg("check")
        .run()
        .await;
    assert!(
        anonymous.code == Some(1) && anonymous.stdout.contains("no AWS credentials were found"),
        "{}",
        anonymous.stdout
    );
}

#[tokio::test]
async fn check_runs_a_query_only_with_the_option() {
    let cloud = Cloud::start().await;
    let one = ResultSet::table(&[("one", "integer")], &[&[Some("1")]]);
    cloud.answer("SELECT 1 AS one", Answer::rows(one));
    let done = extractor(&cloud, &["check", "--query"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stdout);
    assert!(done.stdout.contains("the result in S3"), "{}", done.stdout);
    assert_eq!(cloud.started().len(), 1);
    let why = "Access denied when writing output to url: s3://results/prefix/";
    cloud.answer("SELECT 1 AS one", Answer::failed_by_user(why));
    let done = extractor(&cloud, &["check", "--query"]).await;
    assert!(
        done.code == Some(1) && done.stdout.contains(why) && done.stdout.contains("s3:PutObject"),
        "{}",
        done.stdout
    );
    for op in [Op::StartQueryExecution, Op::GetQueryResults] {
        let one = ResultSet::table(&[("one", "integer")], &[&[Some("1")]]);
        cloud.answer("SELECT 1 AS one", Answer::rows(one));
        // The first request is a probe, for which 'not found' is the right answer; no probe starts a query.
        if op != Op::StartQueryExecution {
            cloud.fault(op, Fault::Pass);
        }
        cloud.always(op, Fault::NotFound);
        let done = extractor(&cloud, &["check", "--query"]).await;
        assert_eq!(done.code, Some(1), "{op:?}: {}", done.stdout);
        cloud.always(op, Fault::Pass);
    }
    let done = extractor(&cloud, &["check", "--workgroup", "unknown"]).await;
    assert!(
        done.code == Some(1) && done.stdout.contains("unknown is not found"),
        "{}",
        done.stdout
    );
    cloud.workgroup(Workgroup {
        managed_results: true,
        ..Workgroup::named("managed")
    });
    let done = extractor(&cloud, &["check", "--workgroup", "managed"]).await;
    assert_eq!(done.code, Some(0), "{}", done.stdout);
    assert!(!done.stdout.contains("s3:GetObject"), "{}", done.stdout);
    assert_eq!(extractor(&cloud, &["check", "no_job"]).await.code, Some(2));
}

/// `check` and `run` decide alike about a workgroup and a job: here the check, in `result_source` and `refused` the run.
#[tokio::test]
async fn check_takes_the_way_that_a_run_takes() {
    let (cloud, folder) = (Cloud::start().await, jobs());
    let jobs = folder.path().to_str().unwrap();
    let job = |name: &str, source: &str| {
        let text = JOB.replace("sql =", &format!("{source}\nsql ="));
        std::fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
    };
    job("auto", "results = \"auto\"");
    job("s3", "results = \"s3\"");
    job("own", "output_location = \"s3://own/prefix/\"");
    let group = |name: &str, change: fn(&mut Workgroup)| {
        let mut workgroup = Workgroup::named(name);
        change(&mut workgroup);
        cloud.workgroup(workgroup);
    };
    group("managed", |it| it.managed_results = true);
    group("sealed", |it| it.client_encrypted = true);
    group("bare", |it| it.output_location = None);
    group("strict", |it| {
        (it.output_location, it.enforced) = (None, true);
    });
    for (job, workgroup, wrong) in [
        ("auto", "managed", None),
        ("s3", "managed", Some("results = \\\"s3\\\"")),
        ("auto", "sealed", None),
        ("s3", "sealed", Some("CSE_KMS")),
        ("own", "managed", Some("refuses the job's output_location")),
        (
            "auto",
            "bare",
            Some("neither the workgroup bare nor the job has one"),
        ),
        ("own", "bare", None),
        ("own", "strict", Some("its settings override the job's")),
    ] {
        let arguments = ["check", job, "--workgroup", workgroup, "--json"];
        let done = with_jobs(&cloud, jobs, &arguments).await;
        assert_eq!(
            done.code,
            Some(i32::from(wrong.is_some())),
            "{job} {workgroup}: {done:?}"
        );
        if let Some(wrong) = wrong {
            assert!(
                done.stdout.contains(wrong),
                "{job} {workgroup}: {}",
                done.stdout
            );
        }
    }
}

#[tokio::test]
async fn check_queries_for_the_job_and_reads_as_a_run_does() {
    let (cloud, folder) = (Cloud::start().await, jobs());
    let jobs = folder.path().to_str().unwrap();
    let one = ResultSet::table(&[("country", "varchar")], &[]);
    cloud.otherwise(Answer::rows(one));
    let arguments = [
        "check",
        "clicks",
        "--query",
        "--set",
        "day=2018-04-05",
        "--json",
    ];
    let done = with_jobs(&cloud, jobs, &arguments).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let sql = cloud.statements();
    assert!(
        sql[0].contains("DATE '2018-04-05'") && sql[0].ends_with("LIMIT 0"),
        "{sql:?}"
    );
    // The object is refused, and auto reads the pages; s3 does not.
    cloud.fault(Op::GetObject, Fault::Pass);
    cloud.always(Op::GetObject, Fault::AccessDenied);
    let done = with_jobs(&cloud, jobs, &["check", "clicks", "--query", "--json"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let found = checks(&done);
    let result = found.iter().find(|(what, ..)| what == "the result in S3");
    let (_, level, text) = result.unwrap();
    assert!(
        level == "warning" && text.contains("a run reads the pages"),
        "{text}"
    );
    let text = JOB.replace("sql =", "results = \"s3\"\nsql =");
    std::fs::write(folder.path().join("clicks.toml"), text).unwrap();
    cloud.fault(Op::GetObject, Fault::Pass);
    let done = with_jobs(&cloud, jobs, &["check", "clicks", "--query", "--json"]).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    // A parameter that has no default gets an example: the columns of the query do not depend on it.
    let text = JOB.replace(", default = \"2018-04-02\"", "");
    std::fs::write(folder.path().join("clicks.toml"), text).unwrap();
    cloud.always(Op::GetObject, Fault::Pass);
    let done = with_jobs(&cloud, jobs, &["check", "clicks", "--query"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let statements = cloud.statements();
    let last = statements.last().unwrap();
    assert!(
        last.contains("clicks") && last.contains("LIMIT 0"),
        "{last}"
    );
}

#[tokio::test]
async fn check_tells_who_refused_a_query() {
    let cloud = Cloud::start().await;
    let user = "User: arn:aws:iam::123456789012:user/x is not authorized to perform";
    for (reason, what, action) in [
        (
            format!("{user}: glue:GetTable on resource: arn:aws:glue:eu-central-1:123456789012:catalog because no identity-based policy allows the glue:GetTable action (Service: AmazonDataCatalog; Status Code: 400; Error Code: AccessDeniedException)"),
            "Glue",
            "glue:GetTable",
        ),
        (
            "Insufficient permissions to execute the query. Insufficient Lake Formation permission(s) on clicks".to_owned(),
            "Lake Formation",
            "lakeformation:GetDataAccess",
        ),
        (
            format!("{user}: kms:GenerateDataKey on resource: arn:aws:kms:eu-central-1:123456789012:key/0"),
            "KMS",
            "kms:GenerateDataKey",
        ),
        ("Permission denied on S3 path: s3://data/vod/".to_owned(), "S3 (data)", "s3:GetObject"),
        ("Access denied when writing output to url: s3://results/prefix/0.csv".to_owned(), "S3 (results)", "s3:PutObject"),
    ] {
        cloud.otherwise(Answer::failed_by_user(&reason));
        let done = extractor(&cloud, &["check", "--query", "--json"]).await;
        assert_eq!(done.code, Some(1), "{reason}: {done:?}");
        let found = checks(&done);
        let refused = found.iter().find(|(_, level, _)| level == "wrong").unwrap();
        assert_eq!(refused.0, what, "{refused:?}");
        assert!(refused.2.contains(&format!("\"{action}\"")), "{refused:?}");
        let remedy = ["policy of the extractor's user or role", "in its policy"];
        assert!(remedy.iter().any(|part| refused.2.contains(part)), "{refused:?}");
    }
    cloud.otherwise(Answer::refused("WorkGroup primary is disabled."));
    let done = extractor(&cloud, &["check", "--query"]).await;
    assert!(done.stdout.contains("enable the workgroup"), "{done:?}");
}

const JOB: &str = r#"
[source]
database = "netflix"
sql = "clicks.sql"

[parameters]
day = { type = "date", default = "2018-04-02" }

[target]
table = "clicks"

[[columns]]
source = "country"
name = "country_code"
type = "char(2)"
rules = [{ none_of = ["A1"] }]
"#;

fn jobs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("clicks.toml"), JOB).unwrap();
    let sql = "SELECT country, n FROM clicks WHERE day = :day -- the last line;\n";
    std::fs::write(folder.path().join("clicks.sql"), sql).unwrap();
    folder
}

#[tokio::test]
async fn sample_shows_rows_types_and_rejections() {
    let (cloud, jobs) = (Cloud::start().await, jobs());
    let jobs = jobs.path().to_str().unwrap();
    let columns = [("country", "varchar"), ("n", "bigint")];
    let rows: &[&[Option<&str>]] = &[
        &[Some("DE"), Some("1")],
        &[Some("A1"), None],
        &[Some("FRA"), Some("3")],
    ];
    cloud.otherwise(Answer::rows(ResultSet::table(&columns, rows)).scanned(4_321));
    let arguments = ["sample", "clicks", "--rows", "3", "--set", "day=2018-04-05"];
    let done = with_jobs(&cloud, jobs, &arguments).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stderr.contains("does not bound what it scans"),
        "{}",
        done.stderr
    );
    for wanted in [
        "DATE '2018-04-05'",
        "LIMIT 3",
        "character(2)",
        "bigint",
        "NULL",
        "row 2: rejected by none_of of country_code",
        "row 3: rejected by type of country_code",
        "3 rows of at most 3, 2 of them would be rejected; Athena scanned 4321 bytes",
    ] {
        assert!(done.stdout.contains(wanted), "{wanted}:\n{}", done.stdout);
    }
    let asked = cloud.statements();
    assert!(
        asked[0].ends_with("-- the last line\n) LIMIT 3"),
        "{asked:?}"
    );
    let done = with_jobs(&cloud, jobs, &["sample", "clicks", "--json"]).await;
    let answer: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(answer["rows"][1], serde_json::json!(["A1", null]));
    assert_eq!(answer["columns"][0]["pg_type"], "character(2)");
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 2);
    assert_eq!(
        cloud.states(),
        [QueryState::Succeeded; 2],
        "each sample starts a query"
    );
}

#[tokio::test]
async fn failed_sample_says_why() {
    let (cloud, jobs) = (Cloud::start().await, jobs());
    let jobs = jobs.path().to_str().unwrap();
    cloud.otherwise(Answer::failed_by_user(
        "line 1:1: Table clicks does not exist",
    ));
    let done = with_jobs(&cloud, jobs, &["sample", "clicks"]).await;
    assert!(
        done.code == Some(1)
            && done.stderr.contains("Table clicks does not exist")
            && !done.stderr.contains("attempt"),
        "{}",
        done.stderr
    );
    assert!(!done.stderr.contains("attempt"), "{}", done.stderr);
    let asked = cloud.started().len();
    for misuse in [
        ["sample", "nothing", "--rows", "1"],
        ["sample", "clicks", "--rows", "0"],
        ["sample", "clicks", "--set", "day=someday"],
        ["sample", "clicks", "--set", "month=1"],
    ] {
        let done = with_jobs(&cloud, jobs, &misuse).await;
        assert_eq!(done.code, Some(2), "{misuse:?}: {}", done.stderr);
    }
    assert_eq!(cloud.started().len(), asked);
}

#[tokio::test]
async fn unknown_variable_is_named() {
    let cloud = Cloud::start().await;
    let command = Service::new("extractor").envs(cloud.env()).arg("check");
    let done = command.env("ETL_JBOS", "/nowhere").run().await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stderr.contains("ETL_JBOS") && done.stderr.contains("ETL_JOBS"),
        "{}",
        done.stderr
    );
}
