//! `extractor check`: tries everything that the extractor needs of AWS, with calls that change nothing. A call about an
//! execution or object that does not exist fails with 'not found' where it is permitted, and with 'access denied' otherwise.

use std::time::Duration;

use common::command::{Failure, print, print_json};
use common::job::{Results, Source};
use common::message::RunId;
use serde::Serialize;
use serde_json::json;

use super::{fresh_name, read_job};
use crate::athena::{Query, Workgroup};
use crate::aws::{self, AwsError, AwsErrorKind, Patience};
use crate::query::{self, Started};
use crate::s3::S3Error;
use crate::session::Clients;
use crate::settings::Settings;

/// Check region, credentials, workgroup, output location and each permission: a line each, with the remedy.
///
/// Nothing is changed and nothing costs, unless --query is given.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  extractor check\n  extractor check most_visited_url --query\n\nExit code 0: success. 1: failed, or not true. 2: usage error."
)]
pub struct Arguments {
    /// The job whose workgroup, output location and database are checked: the name of a file in `ETL_JOBS`, without
    /// .toml.
    job: Option<String>,
    /// Another workgroup than the job's, or than primary.
    #[arg(long)]
    workgroup: Option<String>,
    /// Another place for results than the job's, or than the workgroup's: `s3://bucket/prefix/`.
    #[arg(long)]
    output_location: Option<String>,
    /// Also run `SELECT 1`, and read its result from S3 and as pages. It scans nothing.
    #[arg(long)]
    query: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// An execution that does not exist.
const UNKNOWN: &str = "00000000-0000-0000-0000-000000000000";

/// A check and its result.
#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    state: State,
    found: String,
    /// The IAM action that is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    Failed,
    NotTried,
}

#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    /// The cause that makes every other check fail, too.
    blocked: Option<String>,
}

pub(super) async fn run(arguments: Arguments) -> Result<bool, Failure> {
    let mut source = match &arguments.job {
        Some(name) => read_job(name)?.source,
        None => default_source(),
    };
    if arguments.workgroup.is_some() {
        source.workgroup = arguments.workgroup;
    }
    if arguments.output_location.is_some() {
        source.output_location = arguments.output_location;
    }
    let settings: Settings = common::settings::load().map_err(Failure::usage)?;
    let mut findings = Findings::default();
    if let Some(clients) = configuration(&mut findings, &settings).await {
        permissions(&mut findings, &clients, &source).await;
        let run = fresh_name("check")?;
        query(&mut findings, &clients, &source, &run, arguments.query).await;
    }
    report(&findings, arguments.json)
}

/// The source of queries that belong to no job.
fn default_source() -> Source {
    Source {
        database: "default".to_owned(),
        workgroup: None,
        catalog: None,
        output_location: None,
        results: Results::Auto,
        max_scanned: None,
        timeout: Duration::from_mins(2),
    }
}

/// Region and credentials, without a call to Athena or S3.
async fn configuration(findings: &mut Findings, settings: &Settings) -> Option<Clients> {
    match aws::configure(Patience::Command).await {
        Ok(config) => {
            let region = config.region().map(ToString::to_string);
            findings.ok("region", region.unwrap_or_default());
            match aws::identity(&config).await {
                Ok(identity) => findings.ok("credentials", identity),
                Err(problem) => {
                    let remedy = "check the profile or the role's endpoint that provides them";
                    findings.failed("credentials", problem, None, Some(remedy.to_owned()));
                    findings.blocked = Some("there are no credentials".to_owned());
                }
            }
            Some(Clients::of(&config, settings))
        }
        Err(error) => {
            let sentence = error.to_string();
            let (problem, remedy) = sentence.split_once("; ").unwrap_or((&sentence, ""));
            let check = if matches!(error, aws::ConfigurationError::NoRegion) {
                "region"
            } else {
                "credentials"
            };
            let remedy = Some(remedy.to_owned()).filter(|remedy| !remedy.is_empty());
            findings.failed(check, problem.to_owned(), None, remedy);
            None
        }
    }
}

async fn permissions(findings: &mut Findings, clients: &Clients, source: &Source) {
    let name = source.workgroup.as_deref().unwrap_or("primary");
    let found = match findings.blocked {
        Some(_) => findings.skip("workgroup"),
        None => findings.workgroup(name, clients.athena.workgroup(name).await),
    };
    let output = output_location(findings, found.as_ref(), source);
    let athena = &clients.athena;
    if findings.may_try("athena:GetQueryExecution") {
        let tried = athena.look(UNKNOWN).await.map(drop);
        findings.probed("athena:GetQueryExecution", tried);
    }
    if findings.may_try("athena:GetQueryResults") {
        let tried = athena.columns(UNKNOWN).await.map(drop);
        findings.probed("athena:GetQueryResults", tried);
    }
    if findings.may_try("athena:StopQueryExecution") {
        findings.probed("athena:StopQueryExecution", athena.stop(UNKNOWN).await);
    }
    if let Some(place) = output
        && findings.may_try("s3:GetObject")
    {
        let key = format!("{}/etl-check-no-such-object", place.trim_end_matches('/'));
        match clients.s3.probe(&key).await {
            Err(error @ (S3Error::Location(_) | S3Error::Replaced { .. })) => {
                let remedy = "an output location is s3://bucket/prefix/".to_owned();
                findings.failed("s3:GetObject", error.to_string(), None, Some(remedy));
            }
            Err(S3Error::Aws(error)) => findings.probed("s3:GetObject", Err(error)),
            Ok(()) => findings.probed("s3:GetObject", Ok(())),
        }
    }
}

/// The place of the results in S3, if any.
fn output_location(
    findings: &mut Findings,
    workgroup: Option<&Workgroup>,
    source: &Source,
) -> Option<String> {
    let own = source.output_location.clone();
    let Some(workgroup) = workgroup else {
        return own;
    };
    let check = "output location";
    if workgroup.managed_results {
        let found = "none: the workgroup has managed query results, which are read as pages";
        findings.ok(check, found);
        return None;
    }
    let place = if workgroup.enforced {
        workgroup.output_location.clone()
    } else {
        own.or_else(|| workgroup.output_location.clone())
    };
    match &place {
        Some(place) => findings.ok(check, place),
        None => findings.failed(
            check,
            format!(
                "neither the workgroup {} nor the job has one",
                workgroup.name
            ),
            None,
            Some("set output_location in the job's [source], or in the workgroup".to_owned()),
        ),
    }
    place
}

/// `SELECT 1`, from its start to its result in S3 and as pages.
async fn query(
    findings: &mut Findings,
    clients: &Clients,
    source: &Source,
    run: &RunId,
    wanted: bool,
) {
    let check = "athena:StartQueryExecution";
    if !wanted {
        findings.not_tried(
            check,
            "it would start a query; --query starts SELECT 1".to_owned(),
        );
        return;
    }
    if !findings.may_try(check) {
        return;
    }
    let (sql, attempt) = ("SELECT 1 AS one", 1);
    let query = Query {
        run,
        sql,
        source,
        attempt,
    };
    let id = match clients.athena.start(query).await {
        Ok(id) => id,
        Err(error) => return findings.permission(check, Err(error)),
    };
    findings.ok(check, format!("query {id}"));
    let started = Started::now(&id, source);
    let execution = match query::wait_to_the_end(&clients.athena, started).await {
        Ok(Ok(execution)) => execution,
        Ok(Err(reason)) => {
            let remedy = "its role needs what Athena names: s3:GetBucketLocation, s3:ListBucket and s3:PutObject at the output location, and glue for tables".to_owned();
            return findings.failed("a query", reason, None, Some(remedy));
        }
        Err(error) => return findings.permission("athena:GetQueryExecution", Err(error)),
    };
    let columns = clients.athena.columns(&id).await.map(drop);
    findings.permission("the result as pages", columns);
    if let Some(place) = execution.output_location {
        match clients.s3.find(&place).await {
            Ok(object) => findings.ok("the result in S3", format!("{} bytes", object.size)),
            Err(S3Error::Aws(error)) => findings.permission("the result in S3", Err(error)),
            Err(error) => findings.failed("the result in S3", error.to_string(), None, None),
        }
    }
}

impl Findings {
    fn ok(&mut self, check: &str, found: impl Into<String>) {
        self.add(check, State::Ok, found.into(), None, None);
    }

    fn failed(
        &mut self,
        check: &str,
        found: String,
        action: Option<String>,
        remedy: Option<String>,
    ) {
        self.add(check, State::Failed, found, action, remedy);
    }

    fn not_tried(&mut self, check: &str, why: String) {
        self.add(check, State::NotTried, why, None, None);
    }

    fn add(
        &mut self,
        check: &str,
        state: State,
        found: String,
        action: Option<String>,
        remedy: Option<String>,
    ) {
        let check = check.to_owned();
        self.all.push(Finding {
            check,
            state,
            found,
            action,
            remedy,
        });
    }

    /// False, with a finding, when the cause of an earlier failure makes this check fail, too.
    fn may_try(&mut self, check: &str) -> bool {
        if self.blocked.is_some() {
            self.skip(check);
        }
        self.blocked.is_none()
    }

    fn skip(&mut self, check: &str) -> Option<Workgroup> {
        let why = self.blocked.clone().unwrap_or_default();
        self.not_tried(check, why);
        None
    }

    fn workgroup(&mut self, name: &str, found: Result<Workgroup, AwsError>) -> Option<Workgroup> {
        let check = "workgroup";
        match found {
            Ok(workgroup) if workgroup.enabled => {
                self.ok(check, workgroup.to_string());
                Some(workgroup)
            }
            Ok(workgroup) => {
                let remedy = format!("enable the workgroup {name}, or name another");
                self.failed(check, workgroup.to_string(), None, Some(remedy));
                Some(workgroup)
            }
            Err(error) if error.is_code("InvalidRequestException") => {
                let remedy = "name a workgroup of this region and account in the job's [source]";
                self.failed(check, error.message, None, Some(remedy.to_owned()));
                None
            }
            Err(error) => {
                self.permission("athena:GetWorkGroup", Err(error));
                None
            }
        }
    }

    /// The finding of an action that was tried on something that does not exist: 'not found' is a permission.
    fn probed(&mut self, action: &str, tried: Result<(), AwsError>) {
        let is_missing = |error: &AwsError| {
            error.is_code("InvalidRequestException") || error.is_code("NoSuchKey")
        };
        let tried = tried.or_else(|error| {
            if is_missing(&error) {
                Ok(())
            } else {
                Err(error)
            }
        });
        self.permission(action, tried);
    }

    /// The finding of an action that was tried.
    fn permission(&mut self, action: &str, tried: Result<(), AwsError>) {
        let Err(error) = tried else {
            return self.ok(action, "permitted");
        };
        if error.is_denied() {
            let missing = aws::denied_action(&error.message)
                .unwrap_or(action)
                .to_owned();
            let remedy = format!("allow {missing} in the policy of the extractor's user or role");
            return self.failed(action, error.message, Some(missing), Some(remedy));
        }
        let remedy = remedy(&error);
        self.blocked = Some(format!("it would fail as {action} did"));
        self.failed(action, error.message, None, Some(remedy.to_owned()));
    }
}

/// The remedy for an error that is not a missing permission.
fn remedy(error: &AwsError) -> &'static str {
    match error.kind {
        AwsErrorKind::ExpiredCredentials => return "renew the credentials",
        AwsErrorKind::ClockSkew => return "set this machine's clock",
        AwsErrorKind::Throttled | AwsErrorKind::Unavailable | AwsErrorKind::Refused => {}
    }
    if let Some(hint) = error.hint() {
        return hint;
    }
    match error.code.as_deref() {
        Some(
            "PermanentRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException",
        ) => {
            return "the bucket is in another region: set AWS_REGION to it";
        }
        Some("NoSuchBucket") => return "the bucket does not exist: correct the output location",
        _ => {}
    }
    match error.kind {
        AwsErrorKind::Throttled => "too many calls just now: try again",
        AwsErrorKind::Refused => "see the error's code in AWS's documentation",
        AwsErrorKind::Unavailable | AwsErrorKind::ExpiredCredentials | AwsErrorKind::ClockSkew => {
            "check AWS_REGION (or AWS_ENDPOINT_URL), the network and the proxy"
        }
    }
}

fn report(findings: &Findings, json: bool) -> Result<bool, Failure> {
    let ok = findings.all.iter().all(|one| one.state != State::Failed);
    if json {
        print_json(&json!({ "ok": ok, "checks": findings.all }))?;
        return Ok(ok);
    }
    for one in &findings.all {
        let state = match one.state {
            State::Ok => "ok",
            State::Failed => "FAILED",
            State::NotTried => "-",
        };
        let mut line = format!("{state:<7} {:<27} {}", one.check, one.found);
        if let Some(remedy) = &one.remedy {
            line.push_str("; ");
            line.push_str(remedy);
        }
        print(&line)?;
    }
    Ok(ok)
}
