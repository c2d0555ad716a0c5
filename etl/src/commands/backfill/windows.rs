//! The windows of a backfill. Pure: the same command gives the same windows, and every day of the range is in exactly one
//! window.

use std::fmt;
use std::str::FromStr;

use common::job::{Job, ParameterType};
use common::message::RunId;
use jiff::civil::Date;
use jiff::{Span, ToSpan as _};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The most windows of one backfill: each is a query that costs money.
const MAX_WINDOWS: usize = 10_000;

/// Whether a job counts the last day of its range in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bound {
    /// The parameter is the last day that is loaded.
    Inclusive,
    /// The parameter is the day after the last.
    Exclusive,
}

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Days(i32),
    Weeks(i32),
    Months(i32),
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let count = digits
            .parse()
            .ok()
            .filter(|count| (1..=1_000).contains(count));
        match (count, unit) {
            (Some(count), "d") => Ok(Self::Days(count)),
            (Some(count), "w") => Ok(Self::Weeks(count)),
            (Some(count), "mo") => Ok(Self::Months(count)),
            _ => Err("write a number of days, weeks or months, such as 1d, 2w or 1mo".to_owned()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Days(count) => write!(f, "{count}d"),
            Self::Weeks(count) => write!(f, "{count}w"),
            Self::Months(count) => write!(f, "{count}mo"),
        }
    }
}

impl Step {
    fn times(self, times: i32) -> Option<Span> {
        Some(match self {
            Self::Days(count) => count.checked_mul(times)?.days(),
            Self::Weeks(count) => count.checked_mul(times)?.weeks(),
            Self::Months(count) => count.checked_mul(times)?.months(),
        })
    }
}

/// Days from `from` up to, and not including, `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    pub from: Date,
    pub until: Date,
}

/// The windows of a range, the last one cut at its end. A month after the 31st is the last day of a
/// shorter month; each is counted from the range's beginning, so that they do not drift.
pub(super) fn windows(from: Date, until: Date, step: Step) -> Result<Vec<Window>, String> {
    if until <= from {
        return Err(format!(
            "the range begins on {from} and ends before {until}, and so has no day; --to is the day after the last"
        ));
    }
    let beyond = || format!("the range from {from} to {until} is beyond the calendar");
    let mut windows = Vec::new();
    let mut begin = from;
    for times in 1.. {
        let span = step.times(times).ok_or_else(beyond)?;
        let end = from.checked_add(span).map_err(|_| beyond())?.min(until);
        windows.push(Window {
            from: begin,
            until: end,
        });
        if end == until {
            break;
        }
        if windows.len() == MAX_WINDOWS {
            return Err(format!(
                "the range from {from} to {until} has more than {MAX_WINDOWS} windows of {step}; choose longer windows or a part of the range"
            ));
        }
        begin = end;
    }
    Ok(windows)
}

/// How a window's bounds become values of a job's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    first: (String, ParameterType),
    /// None for a job that takes one day.
    last: Option<(String, ParameterType, Bound)>,
}

impl Bounds {
    /// From the parameters that the command names, which the job must have.
    pub(super) fn new(
        job: &Job,
        names: &[String],
        to_is: Option<Bound>,
        step: Step,
    ) -> Result<Self, String> {
        let typed = |name: &String| {
            let declared = job.parameters.get(name).map(|spec| spec.parameter_type);
            match declared {
                Some(kind @ (ParameterType::Date | ParameterType::Timestamp)) => {
                    Ok((name.clone(), kind))
                }
                Some(other) => Err(format!(
                    "the parameter {name:?} of the job {} is of type {other}; a window needs one of type date or timestamp",
                    job.spec.name
                )),
                None => Err(format!(
                    "the job {} has no parameter {name:?} that takes a window's bound; name its parameters with --param-names FROM,TO",
                    job.spec.name
                )),
            }
        };
        let first = names.first().map(typed).ok_or("--param-names is empty")??;
        let last = names.get(1).map(typed).transpose()?;
        if let Some(end) = job.watermark().and_then(|one| one.end)
            && last.as_ref().is_none_or(|(name, _)| name != end)
        {
            return Err(format!(
                "the end of a window is the job's parameter {end:?}; name both with --param-names FROM,{end}"
            ));
        }
        match (&last, to_is) {
            (None, Some(_)) => Err(
                "--to-is applies to the second parameter of --param-names, and there is only one"
                    .to_owned(),
            ),
            (None, None) if step != Step::Days(1) => Err(format!(
                "a job with one parameter for the day needs --every 1d, not {step}"
            )),
            (None, None) => Ok(Self { first, last: None }),
            (Some((name, ParameterType::Timestamp)), Some(Bound::Inclusive)) => Err(format!(
                "the parameter {name:?} is a timestamp, and no timestamp is the last of a day; use --to-is exclusive"
            )),
            (Some((name, kind)), to_is) => {
                if *name == first.0 {
                    return Err(format!("--param-names has {name:?} twice"));
                }
                Ok(Self {
                    first,
                    last: Some((name.clone(), *kind, bound(job, name, *kind, to_is)?)),
                })
            }
        }
    }

    /// The values of the parameters for a window.
    pub(super) fn values(&self, window: Window) -> Vec<(String, String)> {
        let (name, kind) = &self.first;
        let mut values = vec![(name.clone(), value(window.from, *kind))];
        if let Some((name, kind, bound)) = &self.last {
            let day = match bound {
                // A window has at least one day.
                Bound::Inclusive => window.until.yesterday().unwrap_or(window.until),
                Bound::Exclusive => window.until,
            };
            values.push((name.clone(), value(day, *kind)));
        }
        values
    }

    /// Whether a parameter takes a bound.
    pub(super) fn takes(&self, name: &str) -> bool {
        self.first.0 == name || self.last.as_ref().is_some_and(|(last, ..)| last == name)
    }

    /// How the job takes the end of a window, for a person.
    pub(super) fn sentence(&self) -> String {
        match &self.last {
            None => format!("{} is the day", self.first.0),
            Some((name, _, Bound::Inclusive)) => format!("{name} is a window's last day"),
            Some((name, _, Bound::Exclusive)) => format!("{name} is the day after a window"),
        }
    }
}

/// How a job takes the end of a window, unless the command says it.
fn bound(
    job: &Job,
    name: &str,
    kind: ParameterType,
    to_is: Option<Bound>,
) -> Result<Bound, String> {
    // The end of a watermark's range is the first value behind it.
    let is_end = job
        .parameters
        .get(name)
        .is_some_and(|spec| spec.end_of.is_some());
    match to_is {
        Some(Bound::Inclusive) if is_end => Err(format!(
            "the parameter {name:?} is the end of a watermark's range, which it is not in; use --to-is exclusive"
        )),
        Some(bound) => Ok(bound),
        None if is_end || kind == ParameterType::Timestamp => Ok(Bound::Exclusive),
        None => Ok(Bound::Inclusive),
    }
}

fn value(day: Date, kind: ParameterType) -> String {
    match kind {
        ParameterType::Timestamp => format!("{day} 00:00:00"),
        _ => day.to_string(),
    }
}

/// What makes two commands the same backfill: the job, the range, the step, the bounds and the other parameters.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    job: String,
    digest: String,
}

impl Identity {
    pub(super) fn new(
        job: &str,
        (from, until): (Date, Date),
        step: Step,
        bounds: &Bounds,
        set: &[(String, String)],
    ) -> Self {
        let mut set: Vec<_> = set.to_vec();
        set.sort();
        let all = format!("{job}\n{from}\n{until}\n{step}\n{bounds:?}\n{set:?}");
        let digest = format!("{:x}", Sha256::digest(all));
        Self {
            job: job.to_owned(),
            digest: digest[..8].to_owned(),
        }
    }

    /// The name of a window's run; `attempt` counts from 1.
    pub(super) fn run(&self, window: Window, attempt: u32) -> RunId {
        let day = window.from.strftime("%Y%m%d");
        let again = if attempt > 1 {
            format!(".{attempt}")
        } else {
            String::new()
        };
        format!("{}-{day}-{}{again}", self.job, self.digest)
            .parse()
            .expect("a job's name, a day and a number make a run id")
    }

    /// The key of the lock that keeps two processes from the same backfill.
    pub(super) fn key(&self) -> String {
        format!("etl backfill {} {}", self.job, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn every_day_is_in_exactly_one_window() {
        for (step, from, until) in [
            ("1d", date(2018, 4, 1), date(2018, 5, 1)),
            ("1w", date(2018, 4, 1), date(2018, 5, 1)),
            ("1mo", date(2018, 1, 31), date(2018, 12, 15)),
            ("3mo", date(2019, 11, 30), date(2020, 12, 1)),
            ("2d", date(2020, 2, 28), date(2020, 3, 3)),
        ] {
            let all = windows(from, until, step.parse().unwrap()).unwrap();
            assert_eq!((all[0].from, all[all.len() - 1].until), (from, until));
            assert!(all.iter().all(|one| one.from < one.until), "{all:?}");
            assert!(
                all.windows(2).all(|pair| pair[0].until == pair[1].from),
                "{all:?}"
            );
        }
        let days = windows(date(2018, 4, 1), date(2018, 5, 1), Step::Days(1)).unwrap();
        assert_eq!(days.len(), 30);
        let months = windows(date(2018, 1, 31), date(2018, 4, 30), Step::Months(1)).unwrap();
        let ends: Vec<_> = months.iter().map(|one| one.until.to_string()).collect();
        assert_eq!(ends, ["2018-02-28", "2018-03-31", "2018-04-30"]);
    }

    #[test]
    fn range_without_a_day_or_with_too_many_windows_is_refused() {
        let refused =
            |from, until, step: &str| windows(from, until, step.parse().unwrap()).unwrap_err();
        let day = date(2018, 4, 1);
        assert!(refused(day, day, "1d").contains("no day"));
        assert!(refused(day, date(2018, 3, 1), "1d").contains("no day"));
        assert!(refused(date(1, 1, 1), date(9999, 1, 1), "1d").contains("more than"));
        for bad in ["", "1", "d", "0d", "1y", "-1d", "1 d", "1m"] {
            assert!(bad.parse::<Step>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_end_of_a_watermarks_range_is_the_day_after_a_window() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("new.sql"), "SELECT :since, :until").unwrap();
        let toml = "[source]\ndatabase = \"d\"\nsql = \"new.sql\"\n[parameters]\nsince = { type = \"date\", watermark = \"day\", initial = \"2018-04-01\", lag = \"1d\" }\nuntil = { type = \"date\", end_of = \"since\" }\n[target]\ntable = \"t\"\n";
        std::fs::write(folder.path().join("new.toml"), toml).unwrap();
        let job = Job::read(folder.path(), "new").unwrap();
        let bounds = |names: &[&str], to_is| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            Bounds::new(&job, &names, to_is, Step::Weeks(1))
        };
        let week = Window {
            from: date(2018, 4, 2),
            until: date(2018, 4, 9),
        };
        let values = bounds(&["since", "until"], None).unwrap().values(week);
        assert_eq!(values[1].1, "2018-04-09");
        let inclusive = bounds(&["since", "until"], Some(Bound::Inclusive)).unwrap_err();
        assert!(inclusive.contains("--to-is exclusive"), "{inclusive}");
        let half = bounds(&["since"], None).unwrap_err();
        assert!(half.contains("--param-names FROM,until"), "{half}");
    }

    #[test]
    fn run_name_follows_from_the_command_alone() {
        let bounds = Bounds {
            first: ("from".into(), ParameterType::Date),
            last: Some(("to".into(), ParameterType::Date, Bound::Inclusive)),
        };
        let range = (date(2018, 4, 1), date(2018, 5, 1));
        let of =
            |set: &[(String, String)]| Identity::new("clicks", range, Step::Days(1), &bounds, set);
        let window = Window {
            from: date(2018, 4, 7),
            until: date(2018, 4, 8),
        };
        let (first, third) = (of(&[]).run(window, 1), of(&[]).run(window, 3));
        assert_eq!(first, of(&[]).run(window, 1));
        assert!(first.as_str().starts_with("clicks-20180407-"), "{first}");
        assert_eq!(third.as_str(), format!("{first}.3"));
        assert_ne!(first, of(&[("x".into(), "1".into())]).run(window, 1));
        assert_eq!(
            bounds.values(window),
            [
                ("from".into(), "2018-04-07".into()),
                ("to".into(), "2018-04-07".into())
            ]
        );
        let exclusive = Bounds {
            last: Some(("to".into(), ParameterType::Timestamp, Bound::Exclusive)),
            ..bounds
        };
        assert_eq!(exclusive.values(window)[1].1, "2018-04-08 00:00:00");
    }
}
