//! STS's part of the emulator: who a caller is, and roles that may be assumed (AWS Security Token Service API Reference).

use percent_encoding::percent_decode_str;

use super::fault::{ErrorAnswer, Op, sts_error};
use super::state::State;

/// The caller of every key that belongs to no role.
const USER: &str = "arn:aws:iam::123456789012:user/testkit";

/// A field of a form.
pub(crate) fn field(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let mut pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(found, _)| *found == name)?.1.replace('+', " ");
    Some(percent_decode_str(&value).decode_utf8_lossy().into_owned())
}

/// Serves one request of a key: the XML of the answer.
pub(crate) fn serve(state: &State, op: Op, key: &str, body: &[u8]) -> Result<String, ErrorAnswer> {
    if op == Op::GetCallerIdentity {
        let role = state.roles.iter().find(|role| role.key == key);
        let arn = role.map_or(USER.to_owned(), |role| session(&role.arn));
        return Ok(answer(
            "GetCallerIdentity",
            &format!("<Arn>{arn}</Arn><UserId>TESTKIT</UserId><Account>123456789012</Account>"),
        ));
    }
    let wanted = field(body, "RoleArn").unwrap_or_default();
    let id = field(body, "ExternalId");
    let role = state
        .roles
        .iter()
        .find(|role| role.arn == wanted && role.external_id == id);
    let Some(role) = role else {
        let message = format!(
            "User: {USER} is not authorized to perform: sts:AssumeRole on resource: {wanted}"
        );
        return Err(sts_error(403, "AccessDenied", &message));
    };
    Ok(answer(
        "AssumeRole",
        &format!(
            "<AssumedRoleUser><Arn>{}</Arn><AssumedRoleId>TESTKIT</AssumedRoleId></AssumedRoleUser><Credentials>\
             <AccessKeyId>{}</AccessKeyId><SecretAccessKey>testkit</SecretAccessKey><SessionToken>testkit</SessionToken>\
             <Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>",
            session(&role.arn),
            role.key
        ),
    ))
}

/// `arn:aws:sts::1:assumed-role/etl/session` of `arn:aws:iam::1:role/etl`.
fn session(role: &str) -> String {
    let arn = role.replace(":iam:", ":sts:");
    format!("{}/session", arn.replace(":role/", ":assumed-role/"))
}

fn answer(op: &str, result: &str) -> String {
    format!(
        "<{op}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{op}Result>{result}</{op}Result>\
         <ResponseMetadata><RequestId>TESTKIT</RequestId></ResponseMetadata></{op}Response>"
    )
}
