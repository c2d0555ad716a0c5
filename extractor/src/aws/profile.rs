//! The profile of the shared configuration files that the SDK takes its credentials from: where it is, and what to do when
//! it gives none. The SDK decides with the same files; this only explains what it found.

use aws_config::profile::ProfileSet;
use aws_runtime::env_config::file::EnvConfigFiles as ProfileFiles;
use aws_types::os_shim_internal::{Env, Fs};
use common::settings;

/// The selected profile.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) name: String,
    /// By `AWS_PROFILE`, as opposed to `[default]`, which nothing names.
    pub(super) is_named: bool,
    pub(super) origin: Origin,
    /// A profile of the chain that asks for a one-time password.
    pub(super) needs_mfa: Option<String>,
    pub(super) ca_bundle: Option<String>,
    pub(super) metadata_endpoint: Option<String>,
    /// A file that is there and cannot be read: the SDK takes it for an empty one.
    pub(super) unreadable: Option<String>,
}

/// Where a profile's credentials come from, by the last of its chain of `source_profile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// No profile is named, or it has no credentials: a role may give them.
    Nothing,
    /// There is no profile of this name, which the other one names where it is not `AWS_PROFILE`.
    Missing { name: String, by: Option<String> },
    /// Keys in the file, or a role that another source gives.
    Keys,
    /// `sso_session` or `sso_start_url`.
    Sso { profile: String },
    /// The same, without these keys.
    IncompleteSso {
        profile: String,
        missing: Vec<&'static str>,
    },
    /// `login_session`.
    Login { profile: String },
    /// `credential_process`.
    Process { profile: String },
}

impl Profile {
    /// Reads the files that the SDK reads. A file with a wrong syntax has no profile here, and fails in the SDK.
    pub(super) async fn read() -> Self {
        let (fs, env, files) = (Fs::real(), Env::real(), ProfileFiles::default());
        let set = aws_config::profile::load(&fs, &env, &files, None).await;
        let named = settings::variable("AWS_PROFILE").filter(|name| name != "default");
        let unreadable = [config_file(), credentials_file()]
            .into_iter()
            .find_map(|file| cannot_be_read(&file));
        Self {
            unreadable,
            ..Self::of(set.ok().as_ref(), named)
        }
    }

    fn of(set: Option<&ProfileSet>, named: Option<String>) -> Self {
        let get = |key| Some(set?.get(key)?.to_owned());
        let is_named = named.is_some();
        let name = named.unwrap_or_else(|| "default".to_owned());
        let (origin, needs_mfa) = match set {
            Some(set) => follow(set, &name, is_named),
            None => (Origin::Keys, None),
        };
        Self {
            is_named,
            origin,
            needs_mfa,
            ca_bundle: get("ca_bundle"),
            metadata_endpoint: get("ec2_metadata_service_endpoint"),
            unreadable: None,
            name,
        }
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        if self.is_named {
            format!("the profile {}, which AWS_PROFILE names,", self.name)
        } else {
            format!("the profile [default] of {}", config_file())
        }
    }
}

/// Follows `source_profile` to the profile that has credentials of its own.
fn follow(set: &ProfileSet, first: &str, is_named: bool) -> (Origin, Option<String>) {
    let mut needs_mfa = None;
    let (mut name, mut by) = (first, None);
    // A chain that goes round fails in the SDK, which says so.
    for _ in 0..=set.profiles().count() {
        let Some(profile) = set.get_profile(name) else {
            if by.is_none() && !is_named {
                return (Origin::Nothing, None);
            }
            let (name, by) = (name.to_owned(), by.map(str::to_owned));
            return (Origin::Missing { name, by }, needs_mfa);
        };
        if profile.get("mfa_serial").is_some() {
            needs_mfa.get_or_insert_with(|| name.to_owned());
        }
        let is_role = profile.get("role_arn").is_some();
        let is_role = is_role && profile.get("web_identity_token_file").is_none();
        match profile.get("source_profile").filter(|_| is_role) {
            Some(source) if source != name => (by, name) = (Some(name), source),
            _ => break,
        }
    }
    (origin(set, name), needs_mfa)
}

fn origin(set: &ProfileSet, name: &str) -> Origin {
    let get = |key: &str| set.get_profile(name).and_then(|profile| profile.get(key));
    let has = |keys: &[&str]| keys.iter().any(|key| get(key).is_some());
    let profile = name.to_owned();
    if has(&["sso_session", "sso_start_url", "sso_account_id"]) {
        let session = get("sso_session").and_then(|session| set.sso_session(session));
        let missing = [
            "sso_account_id",
            "sso_role_name",
            "sso_region",
            "sso_start_url",
        ];
        let missing = missing.into_iter().filter(|key| {
            let of_session = session.and_then(|session| session.get(key));
            get(key).or(of_session).is_none()
        });
        let missing: Vec<_> = missing.collect();
        return if missing.is_empty() {
            Origin::Sso { profile }
        } else {
            Origin::IncompleteSso { profile, missing }
        };
    }
    if has(&["login_session"]) {
        Origin::Login { profile }
    } else if has(&["credential_process"]) {
        Origin::Process { profile }
    } else if has(&[
        "role_arn",
        "credential_source",
        "aws_access_key_id",
        "aws_secret_access_key",
    ]) {
        Origin::Keys
    } else {
        Origin::Nothing
    }
}

/// `~/.aws/config`, or what replaces it.
pub(super) fn config_file() -> String {
    file("AWS_CONFIG_FILE", "config")
}

/// `~/.aws/credentials`, or what replaces it.
pub(super) fn credentials_file() -> String {
    file("AWS_SHARED_CREDENTIALS_FILE", "credentials")
}

fn file(variable: &str, name: &str) -> String {
    settings::variable(variable).unwrap_or_else(|| match settings::variable("HOME") {
        Some(home) => format!("{home}/.aws/{name}"),
        None => format!("~/.aws/{name}"),
    })
}

fn cannot_be_read(file: &str) -> Option<String> {
    let error = std::fs::File::open(file).err()?;
    let is_missing = error.kind() == std::io::ErrorKind::NotFound;
    (!is_missing).then(|| format!("{file} cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const FILE: &str = "
[default]
region = eu-central-1
[profile chain]
role_arn = arn:aws:iam::1:role/a
source_profile = middle
[profile middle]
role_arn = arn:aws:iam::1:role/b
source_profile = person
mfa_serial = arn:aws:iam::1:mfa/me
[profile person]
sso_session = s
sso_account_id = 1
sso_role_name = r
[sso-session s]
sso_region = eu-central-1
sso_start_url = https://example.awsapps.com/start
[profile half]
sso_start_url = https://example.awsapps.com/start
sso_region = eu-central-1
[profile lost]
role_arn = arn:aws:iam::1:role/a
source_profile = nobody
[profile round]
role_arn = arn:aws:iam::1:role/a
source_profile = round2
[profile round2]
role_arn = arn:aws:iam::1:role/a
source_profile = round
[profile self]
role_arn = arn:aws:iam::1:role/a
source_profile = self
aws_access_key_id = a
aws_secret_access_key = b
[profile helper]
credential_process = helper
[profile console]
login_session = arn:aws:iam::1:user/me
";

    async fn profile(named: Option<&str>) -> Profile {
        let files = HashMap::from([("/config".to_owned(), FILE)]);
        let mut env = vec![("AWS_CONFIG_FILE", "/config")];
        env.extend(named.map(|named| ("AWS_PROFILE", named)));
        let (fs, env) = (Fs::from_map(files), Env::from_slice(&env));
        let set = aws_config::profile::load(&fs, &env, &ProfileFiles::default(), None).await;
        Profile::of(Some(&set.unwrap()), named.map(str::to_owned))
    }

    #[tokio::test]
    async fn chain_leads_to_the_profile_that_has_credentials() {
        let profile_of = |name: &str| name.to_owned();
        let chain = profile(Some("chain")).await;
        let person = profile_of("person");
        assert_eq!(chain.origin, Origin::Sso { profile: person });
        assert_eq!(chain.needs_mfa.as_deref(), Some("middle"));
        for (name, origin) in [
            (
                "half",
                Origin::IncompleteSso {
                    profile: profile_of("half"),
                    missing: vec!["sso_account_id", "sso_role_name"],
                },
            ),
            (
                "lost",
                Origin::Missing {
                    name: "nobody".into(),
                    by: Some("lost".into()),
                },
            ),
            (
                "unknown",
                Origin::Missing {
                    name: "unknown".into(),
                    by: None,
                },
            ),
            ("self", Origin::Keys),
            (
                "helper",
                Origin::Process {
                    profile: profile_of("helper"),
                },
            ),
            (
                "console",
                Origin::Login {
                    profile: profile_of("console"),
                },
            ),
        ] {
            assert_eq!(profile(Some(name)).await.origin, origin, "{name}");
        }
        assert_eq!(profile(Some("round")).await.origin, Origin::Keys);
        assert_eq!(profile(None).await.origin, Origin::Nothing);
    }
}
