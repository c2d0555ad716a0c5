//! What signs an extractor in: files of a home folder, and scripted endpoints of AWS's sign-in services.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::cloud::Cloud;
use testkit::endpoint::{Endpoint, Reply};
use testkit::process::{Finished, Service};

/// The name of the cached token of `sso_session = dev`: the SHA-1 of the session's name.
pub(crate) const SESSION_TOKEN: &str =
    ".aws/sso/cache/34c6fceca75e456f25e7e99531e2425c6c1de443.json";
/// That of a profile with `sso_start_url` itself: the SHA-1 of the URL.
pub(crate) const LEGACY_TOKEN: &str =
    ".aws/sso/cache/e8be5486177c5b5392bd9aa76563515b29358e6e.json";
/// That of a `login_session`: the SHA-256 of its ARN.
pub(crate) const LOGIN_TOKEN: &str =
    ".aws/login/cache/286187707741fc2ccb93cf9e56dbd0ee0a16208feed5fbc8ae1baa86d44c283f.json";

pub(crate) const FUTURE: &str = "2099-01-01T00:00:00Z";
pub(crate) const PAST: &str = "2020-01-01T00:00:00Z";

/// An emulator of AWS, and a home folder.
pub(crate) struct Home {
    pub(crate) cloud: Cloud,
    pub(crate) folder: TempDir,
}

impl Home {
    /// With this `~/.aws/config`.
    pub(crate) async fn new(config: &str) -> Self {
        let home = Self {
            cloud: Cloud::start().await,
            folder: tempfile::tempdir().unwrap(),
        };
        home.write(".aws/config", config);
        home
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The extractor with this home, a region, and no keys in its environment.
    pub(crate) fn extractor(&self, env: &[(&str, &str)]) -> Service {
        self.with_no_keys(Service::new("extractor"), env)
    }

    /// The service without what the emulator's environment has of credentials.
    pub(crate) fn with_no_keys(&self, service: Service, env: &[(&str, &str)]) -> Service {
        let service = service
            .envs(self.cloud.env())
            .without("AWS_ACCESS_KEY_ID")
            .without("AWS_SECRET_ACCESS_KEY")
            .without("AWS_CONFIG_FILE")
            .without("AWS_SHARED_CREDENTIALS_FILE")
            .env("HOME", self.path().to_str().unwrap());
        let env = env.iter();
        env.fold(service, |service, (name, value)| service.env(name, value))
    }

    pub(crate) async fn check(&self, env: &[(&str, &str)]) -> Checked {
        let checked = self.extractor(env).arg("check").arg("--json");
        Checked(checked.run().await)
    }
}

/// What `extractor check --json` found.
#[derive(Debug)]
pub(crate) struct Checked(pub(crate) Finished);

impl Checked {
    fn finding(&self, what: &str) -> Value {
        let found: Value = serde_json::from_str(&self.0.stdout).unwrap_or_default();
        let found = found.as_array().cloned().unwrap_or_default();
        let found = found.into_iter().find(|finding| finding["what"] == what);
        found.unwrap_or_else(|| panic!("no finding {what}: {self:?}"))
    }

    /// Everything is permitted with the key that ends so, from there.
    pub(crate) fn passed_with(&self, end: &str) {
        let text = self.finding("credentials")["text"].to_string();
        assert!(text.contains(end), "no {end:?}: {text}");
        assert_eq!(self.0.code, Some(0), "{self:?}");
    }

    /// The problem and the remedy of what is wrong; each part is in one of them.
    pub(crate) fn failed(&self, what: &str, parts: &[&str]) {
        assert_eq!(self.0.code, Some(1), "{self:?}");
        let finding = self.finding(what);
        assert_eq!(finding["level"], "wrong", "{finding}");
        let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let all = format!("{}; {}", text("text"), text("remedy"));
        for part in parts {
            assert!(all.contains(part), "no {part:?}: {all}");
        }
        assert!(!all.contains('\n') && !all.contains('{'), "{all}");
    }
}

/// A cached token of SSO that ends then. One with a client can be renewed.
pub(crate) fn sso_token(expires: &str, is_renewable: bool) -> String {
    let mut token = json!({ "accessToken": "cached", "expiresAt": expires });
    if is_renewable {
        for (name, value) in [
            ("clientId", "client"),
            ("clientSecret", "secret"),
            ("refreshToken", "renew"),
            ("registrationExpiresAt", FUTURE),
        ] {
            token[name] = value.into();
        }
    }
    token.to_string()
}

/// SSO, which knows the role `reader` and these tokens.
pub(crate) async fn sso(tokens: &'static [&'static str]) -> Endpoint {
    Endpoint::start(move |asked| {
        let token = asked.header("x-amz-sso_bearer_token").unwrap_or_default();
        if !tokens.contains(&token) {
            return refusal(
                401,
                "UnauthorizedException",
                "Session token not found or invalid",
            );
        }
        if !asked.path.contains("role_name=reader") {
            return refusal(403, "ForbiddenException", "No access");
        }
        Reply::json(&json!({ "roleCredentials": {
            "accessKeyId": "ASIAFROMSSO",
            "secretAccessKey": "secret",
            "sessionToken": "session",
            "expiration": 4_070_908_800_000_i64,
        }}))
    })
    .await
}

/// An error of the services that speak JSON.
pub(crate) fn refusal(status: u16, code: &str, message: &str) -> Reply {
    let headers = vec![("x-amzn-errortype", code.to_owned())];
    Reply::Full(status, headers, json!({ "message": message }).to_string())
}

/// STS: a key for each role that is assumed, which ends like the role's name; or its refusal.
pub(crate) async fn sts(refuses: bool) -> Endpoint {
    Endpoint::start(move |asked| {
        let field = |name: &str| {
            let mut fields = asked.body.split('&').filter_map(|field| field.split_once('='));
            fields.find(|(field, _)| *field == name).map(|(_, value)| value.to_owned())
        };
        let action = field("Action").unwrap_or_default();
        if refuses {
            return Reply::text(403, &format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: x is not authorized to perform: sts:{action} on resource: r</Message></Error><RequestId>0</RequestId></ErrorResponse>"
            ));
        }
        let role = field("RoleArn").unwrap_or_default();
        let name = role.rsplit("%2F").next().unwrap_or_default().to_uppercase();
        Reply::text(200, &format!(
            "<{action}Response><{action}Result><AssumedRoleUser><AssumedRoleId>A:s</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/r/s</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIA{name}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>{FUTURE}</Expiration></Credentials></{action}Result></{action}Response>"
        ))
    })
    .await
}

/// The endpoint of a container's role, or the metadata of an instance with the role `node`.
pub(crate) async fn metadata() -> Endpoint {
    Endpoint::start(|asked| match asked.path.as_str() {
        "/latest/api/token" if asked.method == "PUT" => {
            let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "21600".to_owned());
            Reply::Full(200, vec![ttl], "imds-token".to_owned())
        }
        "/latest/meta-data/iam/security-credentials/" => Reply::text(200, "node"),
        path if path.ends_with("/node") || path.contains("/role") => Reply::json(&json!({
            "Code": "Success",
            "AccessKeyId": "ASIAOFTHEROLE",
            "SecretAccessKey": "secret",
            "Token": "token",
            "Expiration": FUTURE,
        })),
        _ => Reply::text(404, ""),
    })
    .await
}
