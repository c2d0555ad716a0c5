//! Loads credentials as the SDK's chain does, within a time, and says what to do where it cannot: the SDK's own errors name
//! neither the profile nor the way out.

use std::error::Error;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::error::{CredentialsError, TokenError};
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_smithy_types::error::ErrorMetadata;
use common::settings;
use tokio::time::timeout;

use super::profile::{Origin, Profile, config_file, credentials_file};
use super::{ConfigurationError, chain};

/// The chain of the SDK, explained.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) sdk: SharedCredentialsProvider,
    pub(super) profile: Profile,
    /// For all of the chain: a `credential_process` may wait for a password that nobody types.
    pub(super) timeout: Duration,
}

impl ProvideCredentials for Explained {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.load())
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.sdk.fallback_on_interrupt()
    }
}

impl Explained {
    async fn load(&self) -> provider::Result {
        let loaded = timeout(self.timeout, self.sdk.provide_credentials()).await;
        let loaded =
            loaded.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(self.timeout)));
        if let (Ok(_), Origin::Missing { name, by: None }) = (&loaded, &self.profile.origin) {
            tracing::warn!(
                profile = name,
                "AWS_PROFILE names a profile that does not exist; using other credentials"
            );
        }
        loaded.map_err(|error| {
            let explained = explain(&self.profile, &error);
            match error {
                CredentialsError::CredentialsNotLoaded(_) => {
                    CredentialsError::not_loaded(explained)
                }
                CredentialsError::InvalidConfiguration(_) => {
                    CredentialsError::invalid_configuration(explained)
                }
                _ => CredentialsError::provider_error(explained),
            }
        })
    }
}

/// Who AWS sees: the end of the access key, where it comes from, and the account where it is known.
pub(super) fn describe(credentials: &Credentials) -> String {
    let key = credentials.access_key_id();
    let end = key.char_indices().nth_back(3).map_or(0, |(at, _)| at);
    let features = credentials.get_property::<Vec<AwsCredentialFeature>>();
    let is_from = |feature| features.is_some_and(|features| features.contains(&feature));
    let origin = if is_from(AwsCredentialFeature::CredentialsEnvVars) {
        " of the environment".to_owned()
    } else if is_from(AwsCredentialFeature::CredentialsProfile) {
        let profile = settings::variable("AWS_PROFILE");
        format!(
            " of the profile {}",
            profile.as_deref().unwrap_or("default")
        )
    } else if is_from(AwsCredentialFeature::CredentialsProfileStsWebIdToken) {
        let role = settings::variable("AWS_ROLE_ARN").unwrap_or_default();
        format!(" of the role {role}")
    } else if is_from(AwsCredentialFeature::CredentialsHttp) {
        " of the container's role".to_owned()
    } else if is_from(AwsCredentialFeature::CredentialsImds) {
        " of the instance's role".to_owned()
    } else {
        String::new()
    };
    let account = credentials
        .account_id()
        .map(|account| format!(" in the account {}", account.as_str()));
    format!(
        "access key ...{}{origin}{}",
        &key[end..],
        account.unwrap_or_default()
    )
}

/// What is wrong with the credentials, and what to do.
fn explain(profile: &Profile, error: &CredentialsError) -> ConfigurationError {
    let cause = cause(error);
    let (problem, remedy) = if matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
        none(profile, &cause)
    } else if matches!(profile.origin, Origin::Nothing | Origin::Missing { .. }) {
        of_role(&cause)
    } else {
        let (problem, remedy) = of_profile(profile, error, &cause);
        (problem, remedy + &way_out(profile))
    };
    ConfigurationError {
        what: "credentials",
        problem,
        remedy,
    }
}

/// No part of the chain has credentials.
fn none(profile: &Profile, cause: &str) -> (String, String) {
    match &profile.origin {
        Origin::Missing { name, by } => {
            let by = match by {
                Some(by) => format!("source_profile of the profile {by}"),
                None => "AWS_PROFILE".to_owned(),
            };
            let (config, credentials) = (config_file(), credentials_file());
            let unreadable = profile.unreadable.as_ref();
            let unreadable = unreadable.map_or_else(String::new, |file| format!(" ({file})"));
            (
                format!(
                    "the profile {name}, which {by} names, is in neither {config} nor {credentials}{unreadable}"
                ),
                "correct the name, or the files; in a container, mount ~/.aws and set HOME"
                    .to_owned(),
            )
        }
        Origin::IncompleteSso {
            profile, missing, ..
        } => (
            format!("the profile {profile} has no {}", missing.join(", no ")),
            format!("add it, or run aws configure sso --profile {profile}"),
        ),
        _ => {
            let metadata = cause.split_once("could not communicate with IMDS");
            let metadata =
                metadata.map(|(_, why)| format!("the instance's metadata cannot be read{why}"));
            let why = [profile.unreadable.clone(), metadata];
            let why: Vec<_> = why.into_iter().flatten().collect();
            let found = "no AWS credentials were found";
            let problem = if why.is_empty() {
                found.to_owned()
            } else {
                format!("{found} ({})", why.join("; "))
            };
            let remedy = "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run with a role (in a container on EC2, with a metadata hop limit of 2)";
            (problem, remedy.to_owned())
        }
    }
}

/// What gives this machine, task or pod its role failed.
fn of_role(cause: &str) -> (String, String) {
    if let Some(role) = role_at_hand() {
        let what = format!("the role of {role} cannot be used: {cause}");
        let remedy = match role {
            "AWS_WEB_IDENTITY_TOKEN_FILE" => {
                "check what provides them: the token file must be mounted, and the role AWS_ROLE_ARN must trust the cluster and this service account"
            }
            _ => {
                "check what provides them: the task's role, or the agent and the association of EKS Pod Identity"
            }
        };
        return (what, remedy.to_owned());
    }
    (
        format!("the instance's role cannot be used: {cause}"),
        "check what provides them: the instance profile; for containers, its metadata hop limit has to be 2".to_owned(),
    )
}

/// The variable that offers a role, in the order of the SDK.
fn role_at_hand() -> Option<&'static str> {
    let variables = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let mut variables = variables.into_iter();
    variables.find(|variable| settings::variable(variable).is_some())
}

fn of_profile(profile: &Profile, error: &CredentialsError, cause: &str) -> (String, String) {
    let described = profile.describe();
    let general = |what: &str| format!("{described} {what}: {cause}");
    if matches!(error, CredentialsError::InvalidConfiguration(_)) {
        let remedy = format!("correct it in {}", config_file());
        return (general("cannot be used"), remedy);
    }
    let is_network = cause.contains("dispatch failure") || cause.contains("timeout");
    let (problem, remedy) = match &profile.origin {
        _ if cause.contains("sts:AssumeRole") => {
            let remedy = match &profile.needs_mfa {
                Some(name) => format!(
                    "the profile {name} has mfa_serial, and a program cannot type a code: use SSO, or a credential_process such as aws-vault"
                ),
                None => "allow sts:AssumeRole on this role to the profile's user, and let the role trust it".to_owned(),
            };
            (general("cannot assume its role"), remedy)
        }
        _ if is_network => (
            general("cannot load its credentials"),
            "check the network, HTTPS_PROXY, and the region of the profile".to_owned(),
        ),
        Origin::Sso { profile } => of_sso(profile, cause),
        Origin::Login { profile } => (
            format!("the console sign-in of the profile {profile} is missing or has expired: {cause}"),
            format!("run aws login --profile {profile}"),
        ),
        Origin::Process { profile } => (
            format!("the credential_process of the profile {profile} failed: {cause}"),
            "run its command as the extractor's user: it has to print the JSON that AWS documents, without a question".to_owned(),
        ),
        _ => (
            general("cannot load its credentials"),
            "check what provides them: the keys or the role of the profile".to_owned(),
        ),
    };
    (problem, remedy)
}

fn of_sso(profile: &str, cause: &str) -> (String, String) {
    if cause.contains("ForbiddenException") {
        return (
            format!("the user of the profile {profile} has no such role: {cause}"),
            "correct sso_account_id and sso_role_name, or have the role assigned".to_owned(),
        );
    }
    if cause.contains("failed to write") {
        return (
            format!("the SSO token of the profile {profile} cannot be renewed: {cause}"),
            "make ~/.aws/sso/cache writable for the extractor: the SDK keeps the new token there"
                .to_owned(),
        );
    }
    (
        format!("the SSO sign-in of the profile {profile} is missing or has expired: {cause}"),
        format!("run aws sso login --profile {profile}"),
    )
}

/// `[default]` comes before a role, also where nobody meant it.
fn way_out(profile: &Profile) -> String {
    if profile.is_named {
        return String::new();
    }
    let role = role_at_hand().map_or_else(String::new, |role| format!(" of {role}"));
    format!(
        "; or name another profile in AWS_PROFILE; or remove [default], or set AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE to /dev/null, since it comes before a role{role}"
    )
}

/// The error's own causes, without the layers of the SDK's traits.
fn cause(error: &CredentialsError) -> String {
    if let CredentialsError::ProviderTimedOut(_) = error {
        return error.to_string();
    }
    let mut causes = Vec::new();
    for error in chain(error) {
        if let Some(answer) = error.downcast_ref::<ErrorMetadata>() {
            causes.extend(answer.message().map(str::to_owned));
        } else if !error.is::<CredentialsError>() && !error.is::<TokenError>() {
            causes.push(error.to_string());
        }
        if error.source().is_none() {
            causes.extend(hidden_cause(error));
        }
    }
    let causes = causes.join(": ");
    causes.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The error about a cached SSO token does not give the file as its source.
fn hidden_cause(error: &(dyn Error + 'static)) -> Option<String> {
    #[expect(deprecated, reason = "this is where that error of the SDK has it")]
    let cause = error.cause()?;
    let source = cause.source().map(|source| format!(": {source}"));
    Some(format!("{cause}{}", source.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As from a folder that is mounted read-only, which no test can make for every user.
    #[test]
    fn sso_token_that_cannot_be_kept_asks_for_a_writable_folder() {
        let cause = "failed to load the cached SSO token: failed to write `/h/.aws/sso/cache/a.json`: Read-only file system";
        let (problem, remedy) = of_sso("person", cause);
        assert!(
            problem.contains("the profile person cannot be renewed"),
            "{problem}"
        );
        assert!(
            remedy.contains("make ~/.aws/sso/cache writable"),
            "{remedy}"
        );
    }
}
