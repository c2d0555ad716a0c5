//! `uuid` and `inet`.

use std::borrow::Cow;
use std::net::IpAddr;

use super::Problem;
use super::binary::lower_case;

/// `8-4-4-4-12` hex digits, in lower case.
pub(super) fn uuid(text: &str) -> Result<Cow<'_, str>, Problem> {
    let is_shaped = text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if is_shaped {
        Ok(lower_case(text))
    } else {
        Err("is not a UUID".into())
    }
}

/// An address of IPv4 or IPv6, with or without the length of a network's prefix.
pub(super) fn inet(text: &str) -> Result<Cow<'_, str>, Problem> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let parsed: IpAddr = address.parse().map_err(|_| "is not an IP address")?;
    let bits = if parsed.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix.map(|digits| (digits, digits.parse::<u8>())) {
        None => None,
        Some((digits, Ok(length))) if length <= bits && digits == length.to_string() => {
            // Postgres omits the prefix of a single host.
            Some(length).filter(|length| *length < bits)
        }
        Some(_) => return Err(format!("has a prefix that is not 0 to {bits}").into()),
    };
    let shown = match prefix {
        Some(length) => format!("{parsed}/{length}"),
        None => parsed.to_string(),
    };
    Ok(if shown == text {
        text.into()
    } else {
        shown.into()
    })
}
