//! The emulator of Athena and S3 over plain HTTP: what an SDK sends and receives.

use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, Response};
use serde_json::{Value, json};
use testkit::TIMEOUT;
use testkit::cloud::{
    Answer, AthenaError, Cloud, Column, Fault, Op, QueryState, ResultSet, Workgroup, sample,
};
use testkit::http;

const TOKEN: &str = "0123456789012345678901234567890123456789";

async fn athena(cloud: &Cloud, op: &str, request: &Value) -> (u16, Value) {
    let target = format!("AmazonAthena.{op}");
    let headers = [
        ("x-amz-target", target.as_str()),
        ("content-type", "application/x-amz-json-1.1"),
    ];
    let answer = http::send(Method::POST, &cloud.url(), &headers, request.to_string())
        .await
        .unwrap();
    (
        answer.status().as_u16(),
        serde_json::from_slice(answer.body()).unwrap(),
    )
}

async fn started(cloud: &Cloud, sql: &str) -> String {
    let (status, answer) =
        athena(cloud, "StartQueryExecution", &json!({ "QueryString": sql })).await;
    assert_eq!(status, 200, "{answer}");
    answer["QueryExecutionId"].as_str().unwrap().to_owned()
}

async fn polled(cloud: &Cloud, id: &str) -> Value {
    let (status, answer) = athena(
        cloud,
        "GetQueryExecution",
        &json!({ "QueryExecutionId": id }),
    )
    .await;
    assert_eq!(status, 200, "{answer}");
    answer["QueryExecution"].clone()
}

/// Starts a query and polls until it ended.
async fn ended(cloud: &Cloud, sql: &str) -> Value {
    let id = started(cloud, sql).await;
    testkit::wait_for("the query to end", TIMEOUT, async || {
        let execution = polled(cloud, &id).await;
        execution["Status"]["CompletionDateTime"]
            .is_number()
            .then_some(execution)
    })
    .await
}

async fn object(cloud: &Cloud, location: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
    try_object(cloud, location, headers).await.unwrap()
}

async fn try_object(
    cloud: &Cloud,
    location: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Response<Bytes>> {
    let url = format!("{}/{}", cloud.url(), location.trim_start_matches("s3://"));
    http::send(Method::GET, &url, headers, Bytes::new()).await
}

fn location(execution: &Value) -> &str {
    execution["ResultConfiguration"]["OutputLocation"]
        .as_str()
        .unwrap()
}

fn field<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers()[name].to_str().unwrap()
}

/// All rows by GetQueryResults, header included, and the sizes of the pages.
async fn pages(cloud: &Cloud, id: &str) -> (Vec<Vec<Option<String>>>, Vec<usize>) {
    let (mut rows, mut sizes) = (Vec::new(), Vec::new());
    let mut request = json!({ "QueryExecutionId": id });
    loop {
        let (status, page) = athena(cloud, "GetQueryResults", &request).await;
        assert_eq!(status, 200, "{page}");
        let page_rows = page["ResultSet"]["Rows"].as_array().unwrap();
        sizes.push(page_rows.len());
        let value = |datum: &Value| datum["VarCharValue"].as_str().map(str::to_owned);
        rows.extend(
            page_rows
                .iter()
                .map(|r| r["Data"].as_array().unwrap().iter().map(value).collect()),
        );
        match page.get("NextToken") {
            Some(token) => request["NextToken"] = token.clone(),
            None => return (rows, sizes),
        }
    }
}

fn two_rows() -> ResultSet {
    ResultSet::table(
        &[("country", "char(2)"), ("url", "varchar")],
        &[&[Some("DE"), Some("a\"b\n,")], &[None, Some("")]],
    )
}

#[tokio::test]
async fn query_passes_its_states_and_its_object_is_athenas_csv() {
    let cloud = Cloud::start().await;
    cloud.answer("FROM t", Answer::rows(two_rows()).scanned(77));
    let id = started(&cloud, "SELECT * FROM t").await;
    let mut states = Vec::new();
    for _ in 0..4 {
        let execution = polled(&cloud, &id).await;
        states.push(execution["Status"]["State"].as_str().unwrap().to_owned());
    }
    assert_eq!(states, ["QUEUED", "RUNNING", "SUCCEEDED", "SUCCEEDED"]);
    let execution = polled(&cloud, &id).await;
    assert_eq!(execution["Statistics"]["DataScannedInBytes"], 77);
    assert_eq!(
        location(&execution),
        format!("s3://results/prefix/{id}.csv")
    );
    let answer = object(&cloud, location(&execution), &[]).await;
    assert_eq!(
        answer.body(),
        "\"country\",\"url\"\n\"DE\",\"a\"\"b\n,\"\n,\"\"\n"
    );
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn pages_and_object_have_the_same_rows() {
    let cloud = Cloud::start().await;
    for (rows, sizes) in [
        (0, vec![1]),
        (999, vec![1000]),
        (1000, vec![1000, 1]),
        (2500, vec![1000, 1000, 501]),
    ] {
        cloud.otherwise(Answer::rows(sample::clicks(rows)).at_once());
        let execution = ended(&cloud, "SELECT").await;
        let (read, page_sizes) =
            pages(&cloud, execution["QueryExecutionId"].as_str().unwrap()).await;
        assert_eq!(page_sizes, sizes, "{rows} rows");
        assert_eq!(read[0][0].as_deref(), Some("dt"));
        let all = ResultSet::new(sample::columns(), read[1..].to_vec());
        assert_eq!(
            object(&cloud, location(&execution), &[]).await.body(),
            &all.csv(),
            "{rows} rows"
        );
    }
}

#[tokio::test]
async fn page_describes_its_columns() {
    let cloud = Cloud::start().await;
    let columns = vec![Column::new("d", "decimal(10,2)")];
    cloud.otherwise(
        Answer::rows(ResultSet::empty(columns))
            .at_once()
            .without_header(),
    );
    let id = ended(&cloud, "SHOW").await["QueryExecutionId"].clone();
    let (_, page) = athena(
        &cloud,
        "GetQueryResults",
        &json!({ "QueryExecutionId": id, "MaxResults": 1 }),
    )
    .await;
    let info = &page["ResultSet"]["ResultSetMetadata"]["ColumnInfo"][0];
    assert_eq!(
        (&info["Name"], &info["Type"]),
        (&json!("d"), &json!("decimal"))
    );
    assert_eq!(
        (&info["Precision"], &info["Scale"], &info["Nullable"]),
        (&json!(10), &json!(2), &json!("UNKNOWN"))
    );
    assert_eq!(page["ResultSet"]["Rows"], json!([]));
}

#[tokio::test]
async fn repeated_token_starts_one_query() {
    let cloud = Cloud::start().await;
    cloud.otherwise(Answer::rows(two_rows()));
    let request = json!({ "QueryString": "SELECT 1", "ClientRequestToken": TOKEN });
    let (_, first) = athena(&cloud, "StartQueryExecution", &request).await;
    let (_, again) = athena(&cloud, "StartQueryExecution", &request).await;
    assert_eq!(first, again);
    assert_eq!(cloud.started().len(), 1);
    let other = json!({ "QueryString": "SELECT 2", "ClientRequestToken": TOKEN });
    let (status, refused) = athena(&cloud, "StartQueryExecution", &other).await;
    assert_eq!(
        (status, &refused["__type"]),
        (400, &json!("InvalidRequestException"))
    );
    assert_eq!(cloud.tokens(), [TOKEN, TOKEN, TOKEN]);
    let short = json!({ "QueryString": "SELECT 1", "ClientRequestToken": "short" });
    assert_eq!(athena(&cloud, "StartQueryExecution", &short).await.0, 400);
}

#[tokio::test]
async fn failed_cancelled_and_stopped_queries_report_a_reason() {
    let cloud = Cloud::start().await;
    let error = AthenaError {
        category: 2,
        error_type: 1006,
        retryable: false,
        message: "no such column".to_owned(),
    };
    cloud.answer("bad", Answer::failed(error).at_once());
    let failed = ended(&cloud, "bad").await;
    assert_eq!(failed["Status"]["State"], "FAILED");
    assert_eq!(failed["Status"]["StateChangeReason"], "no such column");
    assert_eq!(failed["Status"]["AthenaError"]["ErrorType"], 1006);
    let (status, _) = athena(
        &cloud,
        "GetQueryResults",
        &json!({ "QueryExecutionId": failed["QueryExecutionId"] }),
    )
    .await;
    assert_eq!(status, 400);

    cloud.answer("late", Answer::cancelled("by another client").at_once());
    assert_eq!(
        ended(&cloud, "late").await["Status"]["StateChangeReason"],
        "by another client"
    );

    cloud.answer("endless", Answer::running_for_ever());
    let id = started(&cloud, "endless").await;
    assert_eq!(polled(&cloud, &id).await["Status"]["State"], "RUNNING");
    assert_eq!(
        athena(
            &cloud,
            "StopQueryExecution",
            &json!({ "QueryExecutionId": id })
        )
        .await
        .0,
        200
    );
    assert_eq!(polled(&cloud, &id).await["Status"]["State"], "CANCELLED");
    assert_eq!(
        cloud.states(),
        [
            QueryState::Failed,
            QueryState::Cancelled,
            QueryState::Cancelled
        ]
    );

    cloud.answer("SELEC", Answer::refused("mismatched input 'SELEC'"));
    let (status, refused) = athena(
        &cloud,
        "StartQueryExecution",
        &json!({ "QueryString": "SELEC 1" }),
    )
    .await;
    assert_eq!(
        (status, &refused["Message"]),
        (400, &json!("mismatched input 'SELEC'"))
    );
}

#[tokio::test]
async fn workgroup_decides_the_output_location() {
    let cloud = Cloud::start().await;
    cloud.otherwise(Answer::rows(two_rows()).at_once());
    cloud.workgroup(Workgroup {
        enforced: true,
        ..Workgroup::named("strict")
    });
    cloud.workgroup(Workgroup {
        managed_results: true,
        ..Workgroup::named("managed")
    });
    cloud.workgroup(Workgroup {
        output_location: None,
        ..Workgroup::named("bare")
    });
    let start = async |workgroup: &str, location: Option<&str>| {
        let mut request = json!({ "QueryString": "SELECT 1", "WorkGroup": workgroup });
        if let Some(location) = location {
            request["ResultConfiguration"] = json!({ "OutputLocation": location });
        }
        let (status, answer) = athena(&cloud, "StartQueryExecution", &request).await;
        if status != 200 {
            return Err(answer["Message"].as_str().unwrap().to_owned());
        }
        let execution = polled(&cloud, answer["QueryExecutionId"].as_str().unwrap()).await;
        let location = execution["ResultConfiguration"]["OutputLocation"]
            .as_str()
            .map(str::to_owned);
        Ok(location.map(|l| l.rsplit_once('/').unwrap().0.to_owned()))
    };
    assert_eq!(
        start("primary", Some("s3://mine/x/")).await,
        Ok(Some("s3://mine/x".to_owned()))
    );
    assert_eq!(
        start("strict", Some("s3://mine/x/")).await,
        Ok(Some("s3://results/prefix".to_owned()))
    );
    assert_eq!(start("managed", None).await, Ok(None));
    assert!(
        start("bare", None)
            .await
            .unwrap_err()
            .contains("No output location")
    );
    assert!(
        start("unknown", None)
            .await
            .unwrap_err()
            .contains("not found")
    );
    let (_, described) = athena(&cloud, "GetWorkGroup", &json!({ "WorkGroup": "strict" })).await;
    assert_eq!(
        described["WorkGroup"]["Configuration"]["EnforceWorkGroupConfiguration"],
        true
    );
}

#[tokio::test]
async fn objects_are_read_in_ranges_of_one_version() {
    let cloud = Cloud::start().await;
    cloud.otherwise(Answer::rows(sample::clicks(30_000)).at_once());
    let execution = ended(&cloud, "SELECT").await;
    let whole = object(&cloud, location(&execution), &[]).await;
    let (size, etag) = (whole.body().len(), field(&whole, "etag").to_owned());
    let part = object(
        &cloud,
        location(&execution),
        &[("range", "bytes=1000001-1999999"), ("if-match", &etag)],
    )
    .await;
    assert_eq!(part.status(), 206);
    assert_eq!(
        field(&part, "content-range"),
        format!("bytes 1000001-1999999/{size}")
    );
    assert_eq!(part.body(), &whole.body()[1_000_001..2_000_000]);
    let url = format!("{}/{}", cloud.url(), cloud.object_of(&cloud.started()[0]));
    let head = http::send(Method::HEAD, &url, &[], Bytes::new())
        .await
        .unwrap();
    assert_eq!(field(&head, "content-length"), size.to_string());

    let id = execution["QueryExecutionId"].as_str().unwrap();
    cloud.replace_result(id, two_rows());
    let changed = object(&cloud, location(&execution), &[("if-match", &etag)]).await;
    assert_eq!(changed.status(), 412);
    assert!(String::from_utf8_lossy(changed.body()).contains("<Code>PreconditionFailed</Code>"));
    cloud.deny(&cloud.object_of(id));
    let denied = object(&cloud, location(&execution), &[]).await;
    assert!(
        denied.status() == 403
            && String::from_utf8_lossy(denied.body()).contains("<Code>AccessDenied</Code>")
    );
    let missing = object(&cloud, "s3://results/no/such", &[]).await;
    assert!(
        missing.status() == 404
            && String::from_utf8_lossy(missing.body()).contains("<Code>NoSuchKey</Code>")
    );
}

#[tokio::test]
async fn errors_have_the_form_of_their_service() {
    let cloud = Cloud::start().await;
    cloud.otherwise(Answer::rows(two_rows()).at_once());
    cloud.fault(Op::StartQueryExecution, Fault::TooManyRequests);
    cloud.faults(Op::StartQueryExecution, Fault::Throttling, 2);
    cloud.fault(Op::StartQueryExecution, Fault::ExpiredToken);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let (status, answer) = athena(
            &cloud,
            "StartQueryExecution",
            &json!({ "QueryString": "SELECT 1" }),
        )
        .await;
        seen.push((
            status,
            answer["__type"].as_str().map(str::to_owned),
            answer["Reason"].as_str().map(str::to_owned),
        ));
    }
    let error =
        |name: &str, reason: Option<&str>| (400, Some(name.to_owned()), reason.map(str::to_owned));
    assert_eq!(
        seen,
        [
            error(
                "TooManyRequestsException",
                Some("CONCURRENT_QUERY_LIMIT_EXCEEDED")
            ),
            error("ThrottlingException", None),
            error("ThrottlingException", None),
            error("ExpiredTokenException", None),
            (200, None, None),
        ]
    );
    assert_eq!(cloud.started().len(), 1);
    cloud.always(Op::GetObject, Fault::SlowDown);
    let slow = object(&cloud, "s3://results/any", &[]).await;
    assert!(
        slow.status() == 503
            && String::from_utf8_lossy(slow.body()).contains("<Code>SlowDown</Code>")
    );
    cloud.always(Op::GetObject, Fault::Pass);
    assert_eq!(object(&cloud, "s3://results/any", &[]).await.status(), 404);
}

#[tokio::test]
async fn bodies_are_truncated_stalled_or_shortened() {
    let cloud = Cloud::start().await;
    cloud.put_object("b/k", &vec![b'x'; 1_000_000]);
    cloud.fault(Op::GetObject, Fault::Truncate(300_000));
    cloud.fault(Op::GetObject, Fault::Short(300_000));
    let broken = try_object(&cloud, "s3://b/k", &[]).await;
    assert!(broken.is_err(), "a body that breaks off is an error");
    let short = object(&cloud, "s3://b/k", &[]).await;
    assert_eq!(
        (short.body().len(), field(&short, "content-length")),
        (300_000, "300000")
    );
    for fault in [Fault::Stall(10), Fault::NoAnswer] {
        cloud.fault(Op::GetObject, fault.clone());
        let stalled =
            tokio::time::timeout(Duration::from_millis(300), object(&cloud, "s3://b/k", &[])).await;
        assert!(stalled.is_err(), "{fault:?} answers");
    }
    let start = std::time::Instant::now();
    cloud.fault(Op::GetObject, Fault::Delay(Duration::from_millis(200)));
    assert_eq!(
        object(&cloud, "s3://b/k", &[]).await.body().len(),
        1_000_000
    );
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn lost_answer_leaves_the_query_started() {
    let cloud = Cloud::start().await;
    cloud.otherwise(Answer::rows(two_rows()));
    cloud.fault(Op::StartQueryExecution, Fault::LoseAnswer);
    let request = json!({ "QueryString": "SELECT 1", "ClientRequestToken": TOKEN });
    let headers = [("x-amz-target", "AmazonAthena.StartQueryExecution")];
    let lost = http::send(Method::POST, &cloud.url(), &headers, request.to_string()).await;
    assert!(lost.is_err());
    assert_eq!(athena(&cloud, "StartQueryExecution", &request).await.0, 200);
    assert_eq!(cloud.started().len(), 1);
    let log = cloud.requests();
    assert_eq!(
        (log.len(), log[0].fault.clone()),
        (2, Some(Fault::LoseAnswer))
    );
}

#[tokio::test]
async fn answers_for_once_come_first_and_later_ones_override() {
    let cloud = Cloud::start().await;
    cloud.otherwise(Answer::rows(two_rows()).at_once());
    cloud.answer_once("q", Answer::failed_by_system("try again").at_once());
    assert_eq!(
        ended(&cloud, "q").await["Status"]["AthenaError"]["Retryable"],
        true
    );
    assert_eq!(ended(&cloud, "q").await["Status"]["State"], "SUCCEEDED");
    cloud.on_sql(|sql| {
        sql.contains("mine")
            .then(|| Answer::cancelled("handled").at_once())
    });
    assert_eq!(ended(&cloud, "mine").await["Status"]["State"], "CANCELLED");
}
