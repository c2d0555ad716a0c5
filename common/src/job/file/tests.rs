//! Job files that are read, and those that are refused with what to change.

use std::time::Duration;

use super::super::ChannelName;
use super::*;
use crate::schema::PgType;

const CLICKS: &str = r#"
description = "Clicks"
[source]
database = "netflix"
sql = "clicks.sql"
max_scanned = "10 GB"
timeout = "5m"
[parameters]
from = { type = "date", default = "2018-04-02" }
[target]
table = "clicks"
[[columns]]
source = "server_request_country_code"
name = "country_code"
type = "char(2)"
rules = [{ not_empty = true }, { none_of = ["A1", "A2"] }]
"#;

/// The hash of CLICKS. Runs in a ledger have it: a job that does not change keeps its hash when settings are added.
const CLICKS_HASH: &str = "bd6e07b4f0e87002062694762874e7099ff06382141339583c7e97e4170504f7";

fn read(toml: &str) -> Result<Job, String> {
    let folder = std::env::temp_dir().join(format!(
        "jobs-{}-{:x}",
        std::process::id(),
        Sha256::digest(toml)
    ));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("clicks.toml"), toml).unwrap();
    fs::write(
        folder.join("clicks.sql"),
        "SELECT * FROM clicks WHERE dt >= :from;\n",
    )
    .unwrap();
    let job = Job::read(&folder, "clicks").map_err(|error| error.to_string());
    fs::remove_dir_all(&folder).unwrap();
    job
}

#[test]
fn job_is_read_completely() {
    let job = read(CLICKS).unwrap();
    assert_eq!(job.source.max_scanned, Some(10_000_000_000));
    assert_eq!(job.source.timeout, Duration::from_mins(5));
    assert_eq!(job.sql, "SELECT * FROM clicks WHERE dt >= :from");
    assert_eq!(job.spec.target.schema_and_table(), ("public", "clicks"));
    assert_eq!(
        job.request(&BTreeMap::new()).unwrap().sql,
        "SELECT * FROM clicks WHERE dt >= DATE '2018-04-02'"
    );
    assert_eq!(job.hash(), CLICKS_HASH);
}

#[test]
fn source_settings_are_read() {
    let settings = "max_scanned_per_month = \"2 TB\"\nreuse_results = \"60m\"\nexpected_bucket_owner = \"123456789012\"\nrequester_pays = true\nregion = \"eu-central-1\"\nrole_arn = \"arn:aws:iam::123456789012:role/etl/reader\"\nexternal_id = \"x\"\n[parameters]";
    let job = read(&CLICKS.replacen("[parameters]", settings, 1)).unwrap();
    assert_eq!(job.max_scanned_per_month, Some(2_000_000_000_000));
    let source = &job.source;
    assert_eq!(source.reuse_results, Some(Duration::from_hours(1)));
    assert_eq!(
        source.expected_bucket_owner.as_deref(),
        Some("123456789012")
    );
    assert!(source.requester_pays);
    assert_eq!(source.account.region.as_deref(), Some("eu-central-1"));
    assert_eq!(source.account.external_id.as_deref(), Some("x"));
    // A message keeps them.
    let json = serde_json::to_string(source).unwrap();
    assert_eq!(serde_json::from_str::<Source>(&json).unwrap(), *source);
}

#[test]
fn source_settings_that_aws_refuses_are_refused_with_remedy() {
    for (setting, wanted) in [
        ("reuse_results = \"90s\"", "whole minutes"),
        ("reuse_results = \"8days\"", "7days"),
        ("reuse_results = \"0s\"", "whole minutes"),
        ("max_scanned_per_month = \"much\"", "not a size"),
        ("expected_bucket_owner = \"1234\"", "twelve digits"),
        ("region = \"Frankfurt!\"", "eu-central-1"),
        ("region = \"\"", "eu-central-1"),
        ("role_arn = \"etl\"", "arn:aws:iam::"),
        (
            "role_arn = \"arn:aws:iam::123456789012:user/etl\"",
            ":role/",
        ),
        ("external_id = \"x\"", "add role_arn"),
    ] {
        let settings = format!("{setting}\n[parameters]");
        let error = read(&CLICKS.replacen("[parameters]", &settings, 1)).unwrap_err();
        assert!(error.contains(wanted), "{setting}: {error}");
    }
}

/// The job with these bytes as its files.
fn read_bytes(toml: &[u8], sql: &[u8]) -> Result<Job, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("clicks.toml"), toml).unwrap();
    fs::write(folder.path().join("clicks.sql"), sql).unwrap();
    Job::read(folder.path(), "clicks").map_err(|error| error.to_string())
}

#[test]
fn byte_order_mark_is_no_part_of_a_file_and_other_encodings_are_named() {
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let job = read_bytes(&marked(CLICKS), &marked("SELECT 'ü', :from FROM clicks")).unwrap();
    assert_eq!(job.sql, "SELECT 'ü', :from FROM clicks");
    let utf16 = |order: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
        format!("{mark}SELECT 1")
            .encode_utf16()
            .flat_map(order)
            .collect()
    };
    for sql in [
        utf16(u16::to_le_bytes, "\u{feff}"),
        utf16(u16::to_be_bytes, "\u{feff}"),
        utf16(u16::to_le_bytes, ""),
    ] {
        let error = read_bytes(CLICKS.as_bytes(), &sql).unwrap_err();
        assert!(error.contains("clicks.sql is UTF-16"), "{error}");
    }
    let latin1 = b"SELECT '\xfc'";
    let error = read_bytes(CLICKS.as_bytes(), latin1).unwrap_err();
    assert!(error.contains("save it as UTF-8"), "{error}");
}

#[test]
fn statement_that_is_no_query_is_refused() {
    for (sql, wanted) in [
        ("INSERT INTO t SELECT 1", "begins with INSERT"),
        ("SELECT 1; SELECT 2", "several statements"),
        ("-- nothing\n", "no statement"),
    ] {
        let error = read_bytes(CLICKS.as_bytes(), sql.as_bytes()).unwrap_err();
        assert!(
            error.contains(wanted) && error.contains("clicks.toml"),
            "{error}"
        );
    }
}

/// What a person mistypes, before anything is sent: each is refused with what was probably meant.
#[test]
fn misspelt_name_is_refused_with_the_one_that_is_meant() {
    let declared = CLICKS.replace("from =", "form =");
    let unused = CLICKS.replace("[target]", "day = { type = \"date\" }\n[target]");
    let condition = CLICKS.replace(
        "table = \"clicks\"",
        "table = \"clicks\"\nmode = \"replace\"\nreplace_where = \"country_code == 'NL'\"",
    );
    for (toml, wanted) in [
        (
            declared,
            "the SQL uses the parameter \"from\", which the job does not declare; add it under [parameters]; did you mean \"form\"?",
        ),
        (unused, "the parameter \"day\" is declared and never used"),
        (
            condition,
            "replace_where has ==, and SQL compares with one =; write =",
        ),
    ] {
        let error = read(&toml).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    let job = read(CLICKS).unwrap();
    let set = BTreeMap::from([("form".to_owned(), "2018-04-05".to_owned())]);
    assert_eq!(
        job.request(&set).unwrap_err().to_string(),
        "the job has no parameter \"form\"; it has from; did you mean \"from\"?"
    );
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("clicks.toml"), CLICKS).unwrap();
    let unknown = Job::read(folder.path(), "click").unwrap_err().to_string();
    assert!(
        unknown.ends_with("there are: clicks; did you mean \"clicks\"?"),
        "{unknown}"
    );
}

#[test]
fn relative_values_are_resolved_once_in_the_time_zone_of_the_job() {
    let now = "2018-04-05T23:30:00Z".parse().unwrap();
    let set = |value: &str| BTreeMap::from([("from".to_owned(), value.to_owned())]);
    let job = read(&format!("timezone = \"Europe/Amsterdam\"{CLICKS}")).unwrap();
    assert_eq!(job.resolve(&set("yesterday"), None, now), set("2018-04-05"));
    let recorded = set("2018-04-01");
    assert_eq!(
        job.resolve(&set("yesterday"), Some(&recorded), now),
        recorded
    );
    // What is not relative is as it is set, and an absolute default is none of its business.
    assert_eq!(
        job.resolve(&set("2018-04-07"), Some(&recorded), now),
        set("2018-04-07")
    );
    assert_eq!(job.resolve(&BTreeMap::new(), None, now), BTreeMap::new());
    let relative = CLICKS.replace("2018-04-02", "start of month");
    let job = read(&relative).unwrap();
    assert_eq!(job.resolve(&BTreeMap::new(), None, now), set("2018-04-01"));
    let error = job.request(&set("start of munth")).unwrap_err().to_string();
    assert!(error.contains("or relative: now, today"), "{error}");
    let zone = format!("timezone = \"Europe/Rotterdam\"{CLICKS}");
    assert!(read(&zone).unwrap_err().contains("there is no time zone"));
}

#[test]
fn request_fills_in_constant_columns() {
    let added = "\n[[columns]]\nname = \"day\"\nparameter = \"from\"\n[[columns]]\nname = \"asked\"\nrequested_at = true\n";
    let job = read(&(CLICKS.to_owned() + added)).unwrap();
    let at = "2018-04-09T10:11:12.123456789Z".parse().unwrap();
    let set = BTreeMap::from([("from".to_owned(), "2018-04-05".to_owned())]);
    let asked = job.request(&set).unwrap().spec;
    assert!(asked.check().unwrap_err().contains("\"asked\""));
    let spec = asked.with_requested_at(at);
    assert_eq!(spec.check(), Ok(()));
    let filled: Vec<_> = spec.columns[1..]
        .iter()
        .map(|column| {
            let text = column.constant.as_ref().unwrap().as_str();
            (text, column.declared_type().unwrap())
        })
        .collect();
    let wanted = [
        ("2018-04-05", PgType::Date),
        ("2018-04-09T10:11:12.123456Z", PgType::TimestampTz),
    ];
    assert_eq!(filled, wanted);
    // A replay of the run.
    assert_eq!(job.request(&set).unwrap().spec.with_requested_at(at), spec);
    assert_eq!(job.spec.columns[1].constant, None);
}

#[test]
fn requests_of_the_same_values_are_equal_however_they_are_written() {
    let added = "\n[[columns]]\nname = \"limit\"\nparameter = \"n\"\n[[columns]]\nname = \"factor\"\nparameter = \"x\"\n[[columns]]\nname = \"since\"\nparameter = \"at\"\n";
    let parameters = "[parameters]\nn = { type = \"integer\", default = \"007\" }\nx = { type = \"decimal\", default = \"1.50\" }\nat = { type = \"timestamp\", default = \"2018-04-02T00:00\" }\n";
    let target = "table = \"clicks\"\nmode = \"replace\"\nreplace_where = \"since >= :at and limit = :n and factor = :x\"\n";
    let job = CLICKS.replace("[parameters]\n", parameters);
    let job = job.replace("table = \"clicks\"\n", target);
    let job = read(&(job + added)).unwrap();
    let request = |values: [&str; 3]| {
        let names = ["n", "x", "at"].map(str::to_owned);
        let set = names.into_iter().zip(values.map(str::to_owned)).collect();
        job.request(&set).unwrap()
    };
    let wanted = request(["7", "1.5", "2018-04-02 00:00:00"]);
    assert_eq!(request(["07", "01.500", "2018-04-02T00:00:00.0"]), wanted);
    assert_eq!(job.request(&BTreeMap::new()).unwrap(), wanted);
    // A replay, from the values of the ledger.
    assert_eq!(job.request(&wanted.parameters).unwrap(), wanted);
    assert_eq!(
        wanted.spec.target.replace_where.unwrap().to_string(),
        "since >= '2018-04-02 00:00:00' and limit = '7' and factor = '1.5'"
    );
    let constants = wanted.spec.columns[1..].iter();
    let constants: Vec<_> = constants
        .map(|column| column.constant.as_ref().unwrap().as_str())
        .collect();
    assert_eq!(constants, ["7", "1.5", "2018-04-02 00:00:00"]);
}

#[test]
fn unknown_key_is_refused_with_its_line() {
    let error = read(&CLICKS.replace("database =", "databse =")).unwrap_err();
    assert!(
        error.contains("databse") && error.contains("line 4"),
        "{error}"
    );
    let error = read(&CLICKS.replace("not_empty", "not_emty")).unwrap_err();
    assert!(
        error.contains("not_emty") && error.contains("line 16"),
        "{error}"
    );
}

#[test]
fn contradictions_are_refused_with_remedy() {
    for (from, to, wanted) in [
        (
            "table = \"clicks\"",
            "table = \"clicks\"\nmode = \"upsert\"",
            "needs key",
        ),
        (
            "table = \"clicks\"",
            "table = \"clicks\"\nkey = [\"a\"]",
            "belongs to mode",
        ),
        ("10 GB", "10 parsecs", "not a size"),
        (
            "[target]",
            "[[columns]]\nsource = \"Server_Request_Country_Code\"\n[target]",
            "two [[columns]] have the source",
        ),
        ("char(2)", "chr(2)", "is not known here"),
        ("country_code\"\ntype", "_batch\"\ntype", "loader's own"),
        (
            "char(2)\"",
            "char(2)\"\nround = true",
            "cannot have this round",
        ),
        ("char(2)\"", "char(2)\"\nmask = \"redact\"", "holds 2"),
        (
            "[target]",
            "[[columns]]\nname = \"day\"\nparameter = \"form\"\n[target]",
            "\"form\", which the job does not declare",
        ),
        (
            "[target]",
            "[[columns]]\nname = \"country_code\"\nconstant = \"x\"\n[target]",
            "two [[columns]] are named",
        ),
    ] {
        let error = read(&CLICKS.replace(from, to)).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

/// The job with these lines in its target, and its column `day` besides.
fn with_target(lines: &str) -> Result<Job, String> {
    let day = "\n[[columns]]\nsource = \"dt\"\nname = \"day\"\ntype = \"date\"\n[[columns]]\nsource = \"x\"\ntype = \"real\"\n[[columns]]\nsource = \"y\"\n";
    let table = format!("table = \"clicks\"\n{lines}");
    read(&(CLICKS.replace("table = \"clicks\"", &table) + day))
}

#[test]
fn replace_is_staged_and_gets_its_window_from_parameters() {
    let job = with_target(
        "mode = \"replace\"\nreplace_where = \"day >= :from\"\nmin_rows = 0\nmax_rejected = \"1%\"",
    )
    .unwrap();
    assert_eq!(job.spec.target.commit, Commit::Run);
    assert!(job.spec.target.check().is_err());
    let set = BTreeMap::from([("from".to_owned(), "2018-04-05".to_owned())]);
    let request = job.request(&set).unwrap();
    assert_eq!(request.spec.target.check(), Ok(()));
    let window = request.spec.target.replace_where.unwrap();
    assert_eq!(window.to_string(), "day >= '2018-04-05'");
    assert_eq!(request.spec.target.min_rows, Some(0));
    // Another window is no other job.
    assert_eq!(job.hash(), job.clone().hash());
    let held = with_target("max_rejected = 10").unwrap().spec.target;
    assert_eq!(held.commit, Commit::Run);
    let plain = with_target("").unwrap().spec.target;
    assert_eq!(plain.commit, Commit::Batch);
}

#[test]
fn contradicting_target_settings_are_refused() {
    for (lines, wanted) in [
        ("mode = \"insert_only\"", "needs key"),
        ("mode = \"replace\"\nkey = [\"a\"]", "belongs to mode"),
        ("mode = \"replace\"\ncommit = \"batch\"", "remove commit"),
        (
            "max_rejected = 1\ncommit = \"batch\"",
            "remove one of the two",
        ),
        ("max_rejected = \"1\u{2030}\"", "neither a number"),
        ("min_rows = 1", "belongs to mode"),
        ("duplicates = \"reject\"", "belongs to mode"),
        ("replace_where = \"day = :from\"", "belongs to mode"),
        (
            "mode = \"replace\"\nreplace_where = \"day = :fro\"",
            "uses the parameter \"fro\"",
        ),
        (
            "mode = \"replace\"\nreplace_where = \"dt = :from\"",
            "column \"dt\"",
        ),
        (
            "mode = \"replace\"\nreplace_where = \"y = :from\"",
            "says a type",
        ),
        (
            "mode = \"replace\"\nreplace_where = \"x = 1\"",
            "which is real",
        ),
        (
            "mode = \"replace\"\nreplace_where = \"day in (1)\"",
            "supported are",
        ),
        ("mode = \"merge\"", "unknown variant"),
        ("commit = \"never\"", "unknown variant"),
        ("schema = \"melt\"", "unknown variant"),
    ] {
        let error = with_target(lines).unwrap_err();
        assert!(error.contains(wanted), "{lines}: {error}");
    }
}

/// A folder of jobs with every way out of it, and the one above with the file `secret`.
fn folder_with_ways_out() -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::symlink;
    let parent = tempfile::tempdir().unwrap();
    let (folder, outside) = (parent.path().join("jobs"), parent.path().join("secret"));
    fs::create_dir_all(folder.join("sub/..data")).unwrap();
    for sql in [&outside, &folder.join("sub/clicks.sql")] {
        fs::write(sql, "SELECT 'hidden', :from FROM clicks").unwrap();
    }
    symlink(&outside, folder.join("link.sql")).unwrap();
    symlink(parent.path(), folder.join("up")).unwrap();
    symlink("sub/clicks.sql", folder.join("inside.sql")).unwrap();
    // As Kubernetes mounts a ConfigMap.
    symlink("..data/clicks.sql", folder.join("sub/mounted.sql")).unwrap();
    fs::write(folder.join("sub/..data/clicks.sql"), "SELECT :from").unwrap();
    let fifo = folder.join("fifo.sql");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    symlink(&fifo, folder.join("pipe.toml")).unwrap();
    symlink("/dev/zero", folder.join("zero.sql")).unwrap();
    symlink(&outside, folder.join("linked.toml")).unwrap();
    (parent, folder)
}

#[test]
fn only_regular_files_below_the_folder_are_read() {
    let (parent, folder) = folder_with_ways_out();
    let outside = parent.path().join("secret");
    let read = |sql: &str| {
        fs::write(
            folder.join("clicks.toml"),
            CLICKS.replace("clicks.sql", sql),
        )
        .unwrap();
        Job::read(&folder, "clicks").inspect_err(|error| {
            let text = error.to_string();
            assert!(!text.contains("hidden"), "{text}");
        })
    };
    for sql in [
        outside.to_str().unwrap(),
        "/proc/self/environ",
        "../secret",
        "sub/../../secret",
        "sub/../sub/clicks.sql",
        "link.sql",
        "up/secret",
        "zero.sql",
    ] {
        let refused = read(sql);
        assert!(
            matches!(refused, Err(JobError::Outside { .. })),
            "{sql}: {refused:?}"
        );
    }
    for sql in ["sub", "fifo.sql", "."] {
        let refused = read(sql);
        assert!(
            matches!(refused, Err(JobError::NotRegular { .. })),
            "{sql}: {refused:?}"
        );
    }
    for sql in ["inside.sql", "./sub/clicks.sql", "sub/mounted.sql"] {
        read(sql).unwrap();
    }
    // The job file itself.
    fs::write(&outside, "hidden = 1\n").unwrap();
    let linked = Job::read(&folder, "linked").unwrap_err();
    assert!(matches!(linked, JobError::Outside { .. }), "{linked}");
    let pipe = Job::read(&folder, "pipe").unwrap_err();
    assert!(matches!(pipe, JobError::NotRegular { .. }), "{pipe}");
}

#[test]
fn unknown_job_lists_known_jobs() {
    let error = Job::read(Path::new("/nowhere"), "clicks")
        .unwrap_err()
        .to_string();
    assert!(error.contains("ETL_JOBS"), "{error}");
    assert!(matches!(
        Job::read(Path::new("/"), "../etc/passwd"),
        Err(JobError::Unknown { .. })
    ));
}

#[test]
fn channels_and_expectations_are_read_and_change_no_run() {
    let job = read(&format!(
        "notify = [\"oncall\", \"data_2\"]\nwarn_rejected = \"0.5%\"\nexpected_every = \"1d\"{CLICKS}"
    ))
    .unwrap();
    let channels: Vec<_> = job
        .notify
        .channels
        .iter()
        .map(ChannelName::as_str)
        .collect();
    assert_eq!(channels, ["oncall", "data_2"]);
    assert_eq!(
        job.notify.warn_rejected,
        MaxRejected::PartsPerMillion(5_000)
    );
    assert_eq!(job.notify.expected_every, Some(Duration::from_hours(24)));
    assert_eq!(job.hash(), CLICKS_HASH);
    let one = read(&format!("notify = \"oncall\"{CLICKS}"))
        .unwrap()
        .notify;
    assert_eq!(one.channels.len(), 1);
    assert_eq!(one.warn_rejected.to_string(), "5%");
    let none = read(CLICKS).unwrap().notify;
    assert_eq!((none.channels.len(), none.expected_every), (0, None));
}

#[test]
fn channels_and_expectations_without_effect_are_refused_with_remedy() {
    for (setting, wanted) in [
        ("notify = \"on-call\"", "lower-case letters"),
        (
            "notify = [\"https://hooks.example/x\"]",
            "setting of the loader",
        ),
        ("notify = \"\"", "lower-case letters"),
        ("notify = [\"a\", \"b\", \"a\"]", "notify has \"a\" twice"),
        ("warn_rejected = \"1%\"", "add notify"),
        (
            "notify = \"a\"\nwarn_rejected = \"much\"",
            "nor a share such as \"1%\"",
        ),
        (
            "expected_every = \"0s\"",
            "expected_every is shorter than a second",
        ),
        ("expected_every = \"11y\"", "longer than ten years"),
        ("expected_every = \"daily\"", "expected_every"),
        ("expect_every = \"1d\"", "expected_every"),
    ] {
        let error = read(&format!("{setting}{CLICKS}")).unwrap_err();
        assert!(error.contains(wanted), "{setting}: {error}");
    }
}

#[test]
fn partitions_are_left_to_the_owner_of_the_table() {
    let table = "table = \"clicks\"";
    let partitioned = format!("{table}\npartitioned_by = \"dt\"");
    let error = read(&CLICKS.replace(table, &partitioned)).unwrap_err();
    assert!(
        error.contains("CREATE TABLE clicks (...) PARTITION BY"),
        "{error}"
    );
}
