//! `extractor check`: tries everything that the extractor needs of AWS, with calls that change nothing. A call about an
//! execution or object that does not exist fails with 'not found' where it is permitted, and with 'access denied' otherwise.

mod query;

use std::time::Duration;

use anyhow::Context;
use common::command::{Failure, assignment, assignments};
use common::findings::{Findings, Level};
use common::job::{Account, Results, Source};

use super::read_job;
use super::sample::limited;
use crate::athena::Workgroup;
use crate::aws::denial;
use crate::aws::{self, AwsError, AwsErrorKind, Patience};
use crate::results::{choose, output_location};
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
    /// Also run the job's query with LIMIT 0, or `SELECT 1` without a job, and read its result as a run does. It scans
    /// nothing, and needs the permissions for the catalog and for results.
    #[arg(long)]
    query: bool,
    /// Set a parameter of the job for --query; the others have their defaults, or an example of their type.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment, requires = "job")]
    set: Vec<(String, String)>,
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
    let mut check = Check::default();
    let mut sql = "SELECT 1 AS one".to_owned();
    let mut source = match &arguments.job {
        Some(name) => {
            let job = read_job(name)?;
            let request = job.example(&assignments(&arguments.set)?);
            let request = request.with_context(|| format!("cannot query for the job {name}"));
            sql = limited(&request.map_err(Failure::Usage)?.sql, 0);
            job.source
        }
        None => default_source(),
    };
    if arguments.workgroup.is_some() {
        source.workgroup = arguments.workgroup;
    }
    if arguments.output_location.is_some() {
        source.output_location = arguments.output_location;
    }
    let settings: Settings = common::settings::load().map_err(Failure::usage)?;
    if let Some(access) = configuration(&mut check, &settings, &source.account).await {
        let clients = access.clients(&source.account).await.of(&source);
        if check.may_try("principal") {
            (check.findings).fine("principal", clients.principal.name().await);
        }
        permissions(&mut check, &clients, &source).await;
        if arguments.query {
            query::run(&mut check, &clients, &source, &sql).await?;
        } else {
            let why =
                "it would start a query; `extractor check --query` starts one that scans nothing";
            (check.findings).add(Level::Unknown, query::ACTION, why);
        }
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
async fn configuration(
    check: &mut Check,
    settings: &Settings,
    account: &Account,
) -> Option<Access> {
    match aws::configure(Patience::Command).await {
        Ok(config) => {
            let region = config.region().map(ToString::to_string);
            let region = account.region.clone().or(region);
            check.findings.fine("region", region.unwrap_or_default());
            let mut principal = String::new();
            match aws::identity(&config).await {
                Ok(identity) => {
                    check.findings.fine("credentials", &identity);
                    principal = identity;
                }
                Err(error) => {
                    check.wrong(error.what, error.problem, error.remedy);
                    check.blocked = Some("there are no credentials".to_owned());
                }
            }
            Some(Access::new(config, settings, principal))
        }
        Err(error) => {
            check.wrong(error.what, error.problem, error.remedy);
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
    let output = check.output_location(found.as_ref(), source);
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

    /// The place of the results in S3, if any, and whether a run will read there.
    fn output_location(
        &mut self,
        workgroup: Option<&Workgroup>,
        source: &Source,
    ) -> Option<String> {
        let Some(workgroup) = workgroup else {
            return source.output_location.clone();
        };
        let what = "output location";
        let place = match output_location(workgroup, source) {
            Ok(place) => place,
            Err((problem, remedy)) => {
                self.wrong(what, problem, remedy);
                return None;
            }
        };
        match (
            place,
            choose(source.results, place, workgroup.is_client_encrypted),
        ) {
            (_, Err(problem)) => self.findings.wrong(what, problem),
            (Some(place), Ok(_)) => self.findings.fine(what, place),
            (None, Ok(_)) => {
                let found =
                    "none: the workgroup has managed query results, which are read as pages";
                self.findings.fine(what, found);
            }
        }
        if place.is_none() && source.reuse_results.is_some() {
            let problem = "the workgroup has managed query results, of which Athena reuses none";
            self.findings.warning("reuse_results", problem);
        }
        place.map(str::to_owned)
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
        let denial = denial::of_message(&error.message);
        let missing = denial.as_ref().and_then(|denial| denial.action.clone());
        let finding = self.findings.add(Level::Wrong, action, &error.message);
        finding.remedy = Some(denial.map_or_else(
            || format!("allow {action} in the policy of the extractor's user or role"),
            |denial| denial.remedy,
        ));
        finding.action = Some(missing.unwrap_or_else(|| action.to_owned()));
    }
}

/// The remedy for an error that is not a missing permission.
fn remedy(error: &AwsError) -> String {
    let code = error.code.as_deref().unwrap_or_default();
    let known = match error.kind {
        AwsErrorKind::Credentials if code.starts_with("Expired") => Some("renew the credentials"),
        AwsErrorKind::ClockSkew => Some("set this machine's clock"),
        AwsErrorKind::Throttled => Some("too many calls just now: try again"),
        AwsErrorKind::Credentials
        | AwsErrorKind::Denied
        | AwsErrorKind::Unavailable
        | AwsErrorKind::Refused => None,
    };
    let known = known.or(match code {
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => {
            Some("the bucket is in another region: set AWS_REGION to it")
        }
        "NoSuchBucket" => Some("the bucket does not exist: correct the output location"),
        _ => None,
    });
    if let Some(known) = known {
        return known.to_owned();
    }
    error.hint().unwrap_or_else(|| {
        let general = match error.kind {
            AwsErrorKind::Refused | AwsErrorKind::Denied => {
                "see the error's code in AWS's documentation"
            }
            _ => "check AWS_REGION (or AWS_ENDPOINT_URL), the network and the proxy",
        };
        general.to_owned()
    })
}
