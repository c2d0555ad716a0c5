//! Each way to sign in, against scripted services; and what `extractor check` says where one fails.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use testkit::TIMEOUT;
use testkit::cloud::{Answer, sample};
use testkit::endpoint::{Endpoint, Reply};
use testkit::process::Service;
use testkit::wait_until;

use crate::fixture::{Fixture, task};
use crate::signin::{
    FUTURE, Home, LEGACY_TOKEN, LOGIN_TOKEN, PAST, SESSION_TOKEN, metadata, refusal, sso,
    sso_token, sts,
};

const SSO: &str = "
[profile person]
sso_session = dev
sso_account_id = 123456789012
sso_role_name = reader
[profile nobody]
sso_session = dev
sso_account_id = 123456789012
sso_role_name = admin
[profile half]
sso_session = dev
[profile legacy]
sso_start_url = https://example.awsapps.com/start
sso_region = eu-central-1
sso_account_id = 123456789012
sso_role_name = reader
[profile chained]
role_arn = arn:aws:iam::123456789012:role/chained
source_profile = person
[sso-session dev]
sso_start_url = https://example.awsapps.com/start
sso_region = eu-central-1
";

#[tokio::test]
async fn sso_profiles_sign_in_with_the_cached_token() {
    let (home, sso, sts) = (
        Home::new(SSO).await,
        sso(&["cached"]).await,
        sts(false).await,
    );
    for name in [SESSION_TOKEN, LEGACY_TOKEN] {
        home.write(name, &sso_token(FUTURE, false));
    }
    let (sso_url, sts_url) = (sso.url(), sts.url());
    for (profile, wanted) in [
        (
            "person",
            "...MSSO of the profile person in the account 123456789012",
        ),
        ("legacy", "...MSSO of the profile legacy"),
        ("chained", "...INED of the profile chained"),
    ] {
        let env = [
            ("AWS_PROFILE", profile),
            ("AWS_ENDPOINT_URL_SSO", sso_url.as_str()),
            ("AWS_ENDPOINT_URL_STS", sts_url.as_str()),
        ];
        home.check(&env).await.passed_with(wanted);
    }
    let asked = sts.asked();
    let signed = asked[0].header("authorization").unwrap();
    assert!(signed.contains("Credential=ASIAFROMSSO/"), "{signed}");
}

#[tokio::test]
async fn sso_token_is_renewed_and_kept() {
    let (home, sso) = (Home::new(SSO).await, sso(&["renewed"]).await);
    home.write(SESSION_TOKEN, &sso_token(PAST, true));
    let token = json!({ "accessToken": "renewed", "expiresIn": 28_800, "refreshToken": "next" });
    let oidc = Endpoint::start(move |_| Reply::json(&token)).await;
    let env = [
        ("AWS_PROFILE", "person"),
        ("AWS_ENDPOINT_URL_SSO", &sso.url()),
        ("AWS_ENDPOINT_URL_SSO_OIDC", &oidc.url()),
    ];
    home.check(&env)
        .await
        .passed_with("...MSSO of the profile person");
    let kept = std::fs::read_to_string(home.path().join(SESSION_TOKEN)).unwrap();
    assert!(kept.contains("renewed") && kept.contains("next"), "{kept}");
}

#[tokio::test]
async fn missing_or_expired_sso_sign_in_says_the_command() {
    let (home, sso) = (Home::new(SSO).await, sso(&[]).await);
    let url = sso.url();
    let check = async |profile: &str| {
        let env = [("AWS_PROFILE", profile), ("AWS_ENDPOINT_URL_SSO", &url)];
        home.check(&env).await
    };
    let login = "run aws sso login --profile";
    let missing = check("person").await;
    missing.failed(
        "credentials",
        &[&format!("{login} person"), SESSION_TOKEN, "No such file"],
    );
    let missing = check("legacy").await;
    missing.failed("credentials", &[&format!("{login} legacy"), LEGACY_TOKEN]);
    let chained = check("chained").await;
    chained.failed("credentials", &[&format!("{login} person")]);
    home.write(SESSION_TOKEN, &sso_token(PAST, false));
    let expired = check("person").await;
    expired.failed("credentials", &[&format!("{login} person"), "has expired"]);
    // A token that its file calls valid, and SSO does not.
    home.write(LEGACY_TOKEN, &sso_token(FUTURE, false));
    let refused = check("legacy").await;
    refused.failed(
        "credentials",
        &[&format!("{login} legacy"), "Session token not found"],
    );
    let half = check("half").await;
    half.failed(
        "credentials",
        &["half has no sso_account_id, no sso_role_name"],
    );
}

#[tokio::test]
async fn sso_role_that_is_not_assigned_is_no_matter_of_signing_in() {
    let (home, sso) = (Home::new(SSO).await, sso(&["cached"]).await);
    home.write(SESSION_TOKEN, &sso_token(FUTURE, false));
    let env = [
        ("AWS_PROFILE", "nobody"),
        ("AWS_ENDPOINT_URL_SSO", &sso.url()),
    ];
    let checked = home.check(&env).await;
    checked.failed(
        "credentials",
        &["the user of the profile nobody", "sso_role_name"],
    );
}

#[tokio::test]
async fn service_continues_after_the_sso_login() {
    let fixture = Fixture::new().await;
    fixture
        .cloud
        .otherwise(Answer::rows(sample::clicks(5)).at_once());
    let (home, sso) = (Home::new(SSO).await, sso(&["cached"]).await);
    home.write(SESSION_TOKEN, &sso_token(PAST, false));
    let env = [
        ("AWS_PROFILE", "person"),
        ("AWS_ENDPOINT_URL_SSO", &sso.url()),
    ];
    let service = home.with_no_keys(fixture.extractor(), &env);
    let service = service
        .env("AWS_ENDPOINT_URL", &fixture.cloud.url())
        .start()
        .await;
    fixture.send(&task("r", "SELECT 1")).await;
    wait_until("/readyz to say the command", TIMEOUT, async || {
        let readiness = service.readiness().await;
        matches!(readiness, Some((false, why)) if why.contains("aws sso login --profile person"))
    })
    .await;
    home.write(SESSION_TOKEN, &sso_token(FUTURE, false));
    let end = fixture.end_of("r").await;
    assert!(format!("{end:?}").starts_with("Extracted"), "{end:?}");
}

#[tokio::test]
async fn credential_process_gives_the_key_or_its_failure() {
    let config = r#"
[profile vault]
credential_process = sh -c "cat $HOME/key.json"
[profile broken]
credential_process = echo no such vault >&2; exit 3
[profile silent]
credential_process = exec sleep 100
[profile chained]
role_arn = arn:aws:iam::123456789012:role/chained
source_profile = vault
"#;
    let (home, sts) = (Home::new(config).await, sts(false).await);
    let key = json!({ "Version": 1, "AccessKeyId": "ASIAVAULT", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": FUTURE });
    home.write("key.json", &key.to_string());
    let url = sts.url();
    let check = async |profile: &str| {
        let env = [("AWS_PROFILE", profile), ("AWS_ENDPOINT_URL_STS", &url)];
        home.check(&env).await
    };
    check("vault")
        .await
        .passed_with("...AULT of the profile vault");
    check("chained")
        .await
        .passed_with("...INED of the profile chained");
    let broken = check("broken").await;
    broken.failed(
        "credentials",
        &[
            "profile broken failed",
            "no such vault",
            "without a question",
        ],
    );
    let silent = check("silent").await;
    silent.failed("credentials", &["profile silent failed", "timed out"]);
}

#[tokio::test]
async fn console_session_is_used_and_renewed() {
    let config = "[profile console]\nlogin_session = arn:aws:iam::123456789012:user/me\n";
    let home = Home::new(config).await;
    let signin = Endpoint::start(|_| {
        Reply::json(&json!({
            "accessToken": { "accessKeyId": "ASIARENEWED", "secretAccessKey": "s", "sessionToken": "t" },
            "tokenType": "aws_sigv4", "expiresIn": 900, "refreshToken": "next",
        }))
    })
    .await;
    let url = signin.url();
    let check = async |url: &str| {
        let env = [("AWS_PROFILE", "console"), ("AWS_ENDPOINT_URL_SIGNIN", url)];
        home.check(&env).await
    };
    let missing = check(&url).await;
    missing.failed(
        "credentials",
        &["run aws login --profile console", LOGIN_TOKEN],
    );
    home.write(LOGIN_TOKEN, &login_token(FUTURE));
    check(&url)
        .await
        .passed_with("...SOLE of the profile console");
    home.write(LOGIN_TOKEN, &login_token(PAST));
    check(&url)
        .await
        .passed_with("...EWED of the profile console");
    let refuses = Endpoint::start(|_| refusal(400, "AccessDeniedException", "no")).await;
    home.write(LOGIN_TOKEN, &login_token(PAST));
    let expired = check(&refuses.url()).await;
    expired.failed("credentials", &["run aws login --profile console"]);
}

/// A cached console session. Its key signs the requests that renew it.
fn login_token(expires: &str) -> String {
    let mut der = vec![0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
    der.extend([7; 32]);
    der.extend([
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ]);
    let (kind, key) = ("EC PRIVATE KEY", STANDARD.encode(der));
    let key = format!(
        "-----BEGIN {kind}-----\n{}\n{}\n-----END {kind}-----\n",
        &key[..64],
        &key[64..]
    );
    let token: Value = json!({
        "accessToken": {
            "accessKeyId": "ASIACONSOLE", "secretAccessKey": "s", "sessionToken": "t",
            "accountId": "123456789012", "expiresAt": expires,
        },
        "tokenType": "aws_sigv4", "refreshToken": "renew", "idToken": "id",
        "clientId": "arn:aws:signin:::devtools/same-device", "dpopKey": key,
    });
    token.to_string()
}

#[tokio::test]
async fn web_identity_of_a_pod_is_exchanged_for_its_role() {
    let home = Home::new("").await;
    home.write("token", "a-jwt");
    let token = home.path().join("token").to_str().unwrap().to_owned();
    let (trusts, denies) = (sts(false).await, sts(true).await);
    let check = async |url: &str| {
        let env = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/irsa"),
            ("AWS_ENDPOINT_URL_STS", url),
        ];
        home.check(&env).await
    };
    let wanted = "...IRSA of the role arn:aws:iam::123456789012:role/irsa";
    check(&trusts.url()).await.passed_with(wanted);
    let asked = trusts.asked();
    assert!(
        asked[0].body.contains("WebIdentityToken=a-jwt"),
        "{asked:?}"
    );
    let refused = check(&denies.url()).await;
    refused.failed(
        "credentials",
        &["AWS_WEB_IDENTITY_TOKEN_FILE", "must trust the cluster"],
    );
    std::fs::remove_file(&token).unwrap();
    let lost = check(&trusts.url()).await;
    lost.failed(
        "credentials",
        &["No such file", "the token file must be mounted"],
    );
}

#[tokio::test]
async fn container_and_instance_give_their_roles() {
    let (home, metadata) = (Home::new("").await, metadata().await);
    home.write("token", "of-the-pod");
    let token = home.path().join("token").to_str().unwrap().to_owned();
    let (role, url) = (format!("{}/v1/role", metadata.url()), metadata.url());
    let pod = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.as_str()),
    ];
    home.check(&pod)
        .await
        .passed_with("...ROLE of the container's role");
    let asked = metadata.asked();
    assert_eq!(asked[0].header("authorization"), Some("of-the-pod"));
    home.check(&pod[..1])
        .await
        .passed_with("...ROLE of the container's role");
    let instance = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str()),
    ];
    home.check(&instance)
        .await
        .passed_with("...ROLE of the instance's role");
    let asked = metadata.asked();
    let signed = asked.last().unwrap();
    assert_eq!(
        signed.header("x-aws-ec2-metadata-token"),
        Some("imds-token")
    );
    let lost = [(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "http://127.0.0.1:1/role",
    )];
    let lost = home.check(&lost).await;
    lost.failed("credentials", &["Connection refused", "EKS Pod Identity"]);
}

#[tokio::test]
async fn default_profile_that_cannot_be_used_names_itself_and_the_way_out() {
    let (home, metadata) = (Home::new("").await, metadata().await);
    let role = format!("{}/role", metadata.url());
    let at_hand = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.as_str())];
    for broken in [
        "role_arn = arn:aws:iam::123456789012:role/r",
        "sso_session = gone\nsso_account_id = 1\nsso_role_name = r\nsso_region = eu-central-1\nsso_start_url = https://x",
        "role_arn = arn:aws:iam::123456789012:role/r\nsource_profile = default2\n[profile default2]\nrole_arn = r\nsource_profile = default",
    ] {
        home.write(".aws/config", &format!("[default]\n{broken}\n"));
        let parts = [
            "the profile [default] of",
            ".aws/config",
            "AWS_PROFILE",
            "AWS_CONFIG_FILE",
            "before a role of AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        home.check(&at_hand).await.failed("credentials", &parts);
    }
    home.write(".aws/config", "[default]\nregion = eu-central-1\n");
    home.check(&at_hand)
        .await
        .passed_with("...ROLE of the container's role");
}

#[tokio::test]
async fn profile_that_does_not_exist_is_named() {
    let config = "[profile a]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = b\n";
    let home = Home::new(config).await;
    let unknown = home.check(&[("AWS_PROFILE", "typo")]).await;
    unknown.failed(
        "credentials",
        &["the profile typo, which AWS_PROFILE names, is in neither"],
    );
    let chained = home.check(&[("AWS_PROFILE", "a")]).await;
    chained.failed(
        "credentials",
        &["the profile b, which source_profile of the profile a names"],
    );
    let keys = [
        ("AWS_PROFILE", "typo"),
        ("AWS_ACCESS_KEY_ID", "AKIAOFTHEENV"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let checked = home.check(&keys).await;
    checked.passed_with("...EENV of the environment");
}

#[tokio::test]
async fn role_that_needs_a_code_or_trusts_nobody_is_explained() {
    let config = "
[profile plain]
role_arn = arn:aws:iam::123456789012:role/r
source_profile = keys
[profile mfa]
role_arn = arn:aws:iam::123456789012:role/r
source_profile = keys
mfa_serial = arn:aws:iam::123456789012:mfa/me
[profile keys]
aws_access_key_id = AKIAKEYS
aws_secret_access_key = secret
";
    let (home, sts) = (Home::new(config).await, sts(true).await);
    let url = sts.url();
    for (profile, remedy) in [
        ("plain", "let the role trust it"),
        ("mfa", "cannot type a code"),
    ] {
        let env = [("AWS_PROFILE", profile), ("AWS_ENDPOINT_URL_STS", &url)];
        home.check(&env)
            .await
            .failed("credentials", &["cannot assume its role", remedy]);
    }
}

/// Commands start with the files as they are: one that was refused is run again.
#[tokio::test]
async fn command_reads_a_rotated_key_when_it_starts() {
    let home = Home::new("").await;
    let key =
        |key: &str| format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n");
    home.write(".aws/credentials", &key("AKIAOLD1"));
    let old = testkit::cloud::Fault::UnknownClient;
    home.cloud.on_key("AKIAOLD1", old);
    let refused = home.check(&[]).await;
    refused.failed("athena:GetWorkGroup", &["UnrecognizedClientException"]);
    home.write(".aws/credentials", &key("AKIANEW1"));
    home.check(&[])
        .await
        .passed_with("...NEW1 of the profile default");
}

#[tokio::test]
async fn nothing_at_all_says_what_can_be_set() {
    let home = Home::new("").await;
    let none = home.check(&[]).await;
    none.failed(
        "credentials",
        &["no AWS credentials were found", "set AWS_PROFILE"],
    );
    let folder = home.path().to_str().unwrap();
    let unreadable = home.check(&[("AWS_SHARED_CREDENTIALS_FILE", folder)]).await;
    unreadable.failed("credentials", &["no AWS credentials were found"]);
    let service = Service::new("extractor")
        .arg("check")
        .env("AWS_REGION", "eu-central-1");
    let bare = service.env("AWS_EC2_METADATA_DISABLED", "true").run().await;
    assert!(
        bare.stdout.contains("no AWS credentials were found"),
        "{bare:?}"
    );
}
