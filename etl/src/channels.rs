//! The channels that jobs name and loaders have, and what waits for one.

use common::job::{ChannelName, Job};
use common::nearest::did_you_mean;
use ledger::LINEAGE_CHANNEL;
use ledger::outbox::Waiting;

use crate::output::{brief, counted};

/// A sentence for each channel of a job that is in no loader's settings. Nothing is known before a loader was there.
pub fn missing(job: &Job, known: Option<&[String]>) -> Vec<String> {
    let Some(known) = known else {
        return Vec::new();
    };
    let named = job.notify.channels.iter().map(ChannelName::as_str);
    let missing = named.filter(|name| !known.iter().any(|one| one == name));
    missing.map(|name| unknown(name, known)).collect()
}

/// Why nothing is sent to a channel that no loader has.
pub fn unknown(name: &str, known: &[String]) -> String {
    if name == LINEAGE_CHANNEL {
        return "no loader has OPENLINEAGE_URL any more, and events of lineage wait; set it for the loaders, or `etl prune --unsent` gives them up".to_owned();
    }
    let variable = format!("ETL_NOTIFY_{}", name.to_uppercase());
    format!(
        "the channel \"{name}\" is in no loader's settings, and what it is to be told waits; set {variable}_URL or {variable}_COMMAND for the loaders{}",
        did_you_mean(name, known)
    )
}

/// What waits for a channel, for how long and why.
pub fn waiting(waiting: &Waiting) -> String {
    let Waiting {
        channel,
        messages,
        seconds,
        attempts,
        last_error,
    } = waiting;
    let (waits, age) = (counted(*messages, "message"), brief(*seconds));
    let verb = if *messages == 1 { "waits" } else { "wait" };
    let why = match last_error {
        Some(why) => format!(" after {}: {why}", counted((*attempts).into(), "attempt")),
        None => String::new(),
    };
    format!("{waits} {verb} for the channel {channel}, for {age}{why}")
}

/// Whether something is wrong with a channel, and not only its receiver away for a moment.
pub fn waits_long(waiting: &Waiting) -> bool {
    const LONG: f64 = 600.0;
    waiting.seconds > LONG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_channel_is_named_with_the_setting_and_the_nearest_one() {
        let known = ["oncall".to_owned(), "data".to_owned()];
        let said = unknown("onccall", &known);
        assert!(said.contains("ETL_NOTIFY_ONCCALL_URL"), "{said}");
        assert!(said.ends_with("did you mean \"oncall\"?"), "{said}");
        assert!(unknown("pager", &known).ends_with("for the loaders"));
    }

    #[test]
    fn what_waits_is_counted_with_the_reason() {
        let of = |messages, last_error: Option<&str>| {
            waiting(&Waiting {
                channel: "oncall".to_owned(),
                messages,
                seconds: 7_300.0,
                attempts: 12,
                last_error: last_error.map(str::to_owned),
            })
        };
        assert_eq!(
            of(1, None),
            "1 message waits for the channel oncall, for 2 h"
        );
        assert_eq!(
            of(3, Some("https://hooks.example answered 500")),
            "3 messages wait for the channel oncall, for 2 h after 12 attempts: https://hooks.example answered 500"
        );
    }
}
