//! Points at which a test can stop a service, to see how the other parts recover.
//!
//! `ETL_FAILPOINT=NAME`, `NAME@3` (at the third hit), `NAME=exit` or `NAME=panic`. Without an action the service waits there
//! for ever, so that a test can kill it at exactly this point. Only debug builds have failpoints.

/// Acts where the environment names this point; does nothing elsewhere.
#[cfg(not(debug_assertions))]
pub async fn reach(_name: &str) {}

/// Acts where the environment names this point; does nothing elsewhere.
#[cfg(debug_assertions)]
pub async fn reach(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: LazyLock<Option<Wanted>> =
        LazyLock::new(|| Wanted::read(&crate::settings::variable("ETL_FAILPOINT")?));
    static HITS: AtomicU32 = AtomicU32::new(0);

    let Some(wanted) = WANTED.as_ref().filter(|wanted| wanted.name == name) else {
        return;
    };
    if HITS.fetch_add(1, Ordering::Relaxed) + 1 != wanted.hit {
        return;
    }
    tracing::warn!(failpoint = name, "failpoint reached");
    match wanted.action {
        Action::Wait => std::future::pending().await,
        Action::Exit => std::process::exit(99),
        Action::Panic => panic!("failpoint {name} reached"),
    }
}

#[cfg(debug_assertions)]
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Wait,
    Exit,
    Panic,
}

#[cfg(debug_assertions)]
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    hit: u32,
    action: Action,
}

#[cfg(debug_assertions)]
impl Wanted {
    fn read(text: &str) -> Option<Self> {
        let (point, action) = text.split_once('=').unwrap_or((text, "wait"));
        let (name, hit) = point.split_once('@').unwrap_or((point, "1"));
        let action = match action {
            "wait" => Action::Wait,
            "exit" => Action::Exit,
            "panic" => Action::Panic,
            _ => return None,
        };
        Some(Self {
            name: name.to_owned(),
            hit: hit.parse().ok()?,
            action,
        })
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn failpoints_are_parsed() {
        let wanted = |name: &str, hit, action| {
            Some(Wanted {
                name: name.to_owned(),
                hit,
                action,
            })
        };
        assert_eq!(Wanted::read("a"), wanted("a", 1, Action::Wait));
        assert_eq!(Wanted::read("a@3=exit"), wanted("a", 3, Action::Exit));
        assert_eq!(Wanted::read("a=panic"), wanted("a", 1, Action::Panic));
        assert_eq!(Wanted::read("a=dance"), None);
    }
}
