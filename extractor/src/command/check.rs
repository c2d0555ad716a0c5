//! `extractor check`: tries everything that the extractor needs of AWS, with calls that change nothing. A call about an
//! execution or object that does not exist fails with 'not found' where it is permitted, and with 'access denied' otherwise.

use std::time::Duration;

use common::command::Failure;
use common::findings::{Findings, Level};
use common::job::{Results, Source};
use common::message::RunId;

use super::{fresh_name, read_job};
use crate::athena::{Query, Workgroup};
use crate::aws::{self, AwsError, AwsErrorKind, Patience};
use crate::query::{self, Started};
use crate::s3::S3Error;
use crate::session::{Access, Clients};
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

#[derive(Default)]
struct Check {
    findings: Findings,
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
    let mut check = Check::default();
    if let Some(access) = configuration(&mut check, &settings).await {
        let clients = access.clients(&source.account).await.of(&source);
        permissions(&mut check, &clients, &source).await;
        let run = fresh_name("check")?;
        query(&mut check, &clients, &source, &run, arguments.query).await;
    }
    check.findings.report(arguments.json)
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
        ..Source::default()
    }
}

/// Region and credentials, without a call to Athena or S3.
async fn configuration(check: &mut Check, settings: &Settings) -> Option<Access> {
    match aws::configure(Patience::Command).await {
        Ok(config) => {
            let region = config.region().map(ToString::to_string);
            check.findings.fine("region", region.unwrap_or_default());
            let mut principal = String::new();
            match aws::identity(&config).await {
                Ok(identity) => {
                    check.findings.fine("credentials", &identity);
                    principal = identity;
                }
                Err(problem) => {
                    let remedy = "check the profile or the role's endpoint that provides them";
                    check.wrong("credentials", problem, remedy);
                    check.blocked = Some("there are no credentials".to_owned());
                }
            }
            Some(Access::new(config, settings, principal))
        }
        Err(error) => {
            let sentence = error.to_string();
            let what = if matches!(error, aws::ConfigurationError::NoRegion) {
                "region"
            } else {
                "credentials"
            };
            match sentence.split_once("; ") {
                Some((problem, remedy)) => check.wrong(what, problem, remedy),
                None => check.findings.wrong(what, sentence),
            }
            None
        }
    }
}

async fn permissions(check: &mut Check, clients: &Clients, source: &Source) {
    let name = source.workgroup.as_deref().unwrap_or("primary");
    let athena = &clients.athena;
    let found = if check.may_try("workgroup") {
        check.workgroup(name, athena.workgroup(name).await)
    } else {
        None
    };
    let output = output_location(check, found.as_ref(), source);
    (check.probe("athena:GetQueryExecution", athena.look(UNKNOWN))).await;
    (check.probe("athena:GetQueryResults", athena.columns(UNKNOWN))).await;
    (check.probe("athena:StopQueryExecution", athena.stop(UNKNOWN))).await;
    if let Some(place) = output
        && check.may_try("s3:GetObject")
    {
        let key = format!("{}/etl-check-no-such-object", place.trim_end_matches('/'));
        match clients.s3.probe(&key).await {
            Err(
                error @ (S3Error::Location(_)
                | S3Error::Replaced(_)
                | S3Error::ClientEncrypted { .. }),
            ) => {
                let remedy = "an output location is s3://bucket/prefix/";
                check.wrong("s3:GetObject", error.to_string(), remedy);
            }
            Err(S3Error::Aws(error)) => check.probed::<()>("s3:GetObject", Err(error)),
            Ok(()) => check.probed("s3:GetObject", Ok(())),
        }
    }
}

/// The place of the results in S3, if any.
fn output_location(
    check: &mut Check,
    workgroup: Option<&Workgroup>,
    source: &Source,
) -> Option<String> {
    let own = source.output_location.clone();
    let Some(workgroup) = workgroup else {
        return own;
    };
    let what = "output location";
    if workgroup.managed_results {
        let found = "none: the workgroup has managed query results, which are read as pages";
        check.findings.fine(what, found);
        return None;
    }
    let place = if workgroup.enforced {
        workgroup.output_location.clone()
    } else {
        own.or_else(|| workgroup.output_location.clone())
    };
    match &place {
        Some(place) => check.findings.fine(what, place),
        None => check.wrong(
            what,
            format!(
                "neither the workgroup {} nor the job has one",
                workgroup.name
            ),
            "set output_location in the job's [source], or in the workgroup",
        ),
    }
    place
}

/// `SELECT 1`, from its start to its result in S3 and as pages.
async fn query(check: &mut Check, clients: &Clients, source: &Source, run: &RunId, wanted: bool) {
    let action = "athena:StartQueryExecution";
    if !wanted {
        let why = "it would start a query; --query starts SELECT 1";
        check.findings.add(Level::Unknown, action, why);
        return;
    }
    if !check.may_try(action) {
        return;
    }
    let query = Query {
        run,
        sql: "SELECT 1 AS one",
        source,
        attempt: 1,
    };
    let id = match clients.athena.start(query).await {
        Ok(id) => id,
        Err(error) => return check.failed(action, &error),
    };
    check.findings.fine(action, format!("query {id}"));
    let started = Started::now(&id, source);
    let execution = match query::wait_to_the_end(&clients.athena, started).await {
        Ok(Ok(execution)) => execution,
        Ok(Err(reason)) => {
            let remedy = "its role needs what Athena names: s3:GetBucketLocation, s3:ListBucket and s3:PutObject at the output location, and glue for tables";
            return check.wrong("a query", reason, remedy);
        }
        Err(error) => return check.failed("athena:GetQueryExecution", &error),
    };
    match clients.athena.columns(&id).await {
        Ok(_) => check.findings.fine("the result as pages", "permitted"),
        Err(error) => check.failed("the result as pages", &error),
    }
    if let Some(place) = execution.output_location {
        let what = "the result in S3";
        match clients.s3.find(&place).await {
            Ok(object) => (check.findings).fine(what, format!("{} bytes", object.size)),
            Err(S3Error::Aws(error)) => check.failed(what, &error),
            Err(error) => check.findings.wrong(what, error.to_string()),
        }
    }
}

impl Check {
    fn wrong(&mut self, what: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.findings.add(Level::Wrong, what, text).remedy = Some(remedy.into());
    }

    /// False, with a finding, when the cause of an earlier failure makes this check fail, too.
    fn may_try(&mut self, what: &'static str) -> bool {
        if let Some(why) = &self.blocked {
            self.findings.add(Level::Unknown, what, why);
        }
        self.blocked.is_none()
    }

    fn workgroup(&mut self, name: &str, found: Result<Workgroup, AwsError>) -> Option<Workgroup> {
        let what = "workgroup";
        match &found {
            Ok(workgroup) if workgroup.enabled => self.findings.fine(what, workgroup.to_string()),
            Ok(workgroup) => {
                let remedy = format!("enable the workgroup {name}, or name another");
                self.wrong(what, workgroup.to_string(), remedy);
            }
            Err(error) if error.is_code("InvalidRequestException") => {
                let remedy = "name a workgroup of this region and account in the job's [source]";
                self.wrong(what, &error.message, remedy);
            }
            Err(error) => self.failed("athena:GetWorkGroup", error),
        }
        found.ok()
    }

    /// Tries an action on an execution that does not exist.
    async fn probe<T>(
        &mut self,
        action: &'static str,
        call: impl Future<Output = Result<T, AwsError>>,
    ) {
        if self.may_try(action) {
            self.probed(action, call.await);
        }
    }

    /// The finding of an action that was tried on something that does not exist: 'not found' is a permission.
    fn probed<T>(&mut self, action: &'static str, tried: Result<T, AwsError>) {
        match tried {
            Err(error)
                if !error.is_code("InvalidRequestException") && !error.is_code("NoSuchKey") =>
            {
                self.failed(action, &error);
            }
            _ => self.findings.fine(action, "permitted"),
        }
    }

    /// The finding of an action that failed.
    fn failed(&mut self, action: &'static str, error: &AwsError) {
        if !error.is_denied() {
            self.blocked = Some(format!("it would fail as {action} did"));
            return self.wrong(action, &error.message, remedy(error));
        }
        let missing = aws::denied_action(&error.message).unwrap_or(action);
        let finding = self.findings.add(Level::Wrong, action, &error.message);
        finding.action = Some(missing.to_owned());
        finding.remedy = Some(format!(
            "allow {missing} in the policy of the extractor's user or role"
        ));
    }
}

/// The remedy for an error that is not a missing permission.
fn remedy(error: &AwsError) -> &'static str {
    let is_expired = (error.code.as_deref()).is_some_and(|code| code.starts_with("Expired"));
    match error.kind {
        AwsErrorKind::Credentials if is_expired => return "renew the credentials",
        AwsErrorKind::ClockSkew => return "set this machine's clock",
        AwsErrorKind::Credentials
        | AwsErrorKind::Denied
        | AwsErrorKind::Throttled
        | AwsErrorKind::Unavailable
        | AwsErrorKind::Refused => {}
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
        AwsErrorKind::Refused | AwsErrorKind::Denied => {
            "see the error's code in AWS's documentation"
        }
        AwsErrorKind::Unavailable | AwsErrorKind::Credentials | AwsErrorKind::ClockSkew => {
            "check AWS_REGION (or AWS_ENDPOINT_URL), the network and the proxy"
        }
    }
}
