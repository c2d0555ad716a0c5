//! The cost of processes, from `/proc`: CPU seconds and peak resident memory.

use std::collections::BTreeMap;
use std::fs;

/// Ticks per second in `/proc/PID/stat` (`USER_HZ`): 100 on every architecture of Debian.
const TICKS: f64 = 100.0;

/// CPU seconds by process name.
pub(crate) type Cpu = BTreeMap<String, f64>;

/// Fields of `/proc/PID/stat`.
struct Stat {
    parent: u32,
    /// Its own CPU seconds.
    own: f64,
    /// Those of its reaped children.
    reaped: f64,
}

/// `None` when there is no such process.
fn stat(pid: &str) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain blanks; the fields behind it do not.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let seconds = |field: usize| fields[field].parse::<f64>().unwrap_or(0.0) / TICKS;
    Some(Stat {
        parent: fields[1].parse().ok()?,
        own: seconds(11) + seconds(12),
        reaped: seconds(13) + seconds(14),
    })
}

/// CPU seconds of a process.
pub(crate) fn own(pid: u32) -> f64 {
    stat(&pid.to_string()).map_or(0.0, |stat| stat.own)
}

/// CPU seconds of a process and of all children that it has or had.
pub(crate) fn family(pid: u32) -> f64 {
    let head = stat(&pid.to_string()).map_or(0.0, |stat| stat.own + stat.reaped);
    head + children(pid)
        .iter()
        .filter_map(|child| stat(child))
        .map(|stat| stat.own)
        .sum::<f64>()
}

/// CPU seconds of this process, and of its children that have ended.
pub(crate) fn this() -> (f64, f64) {
    stat("self").map_or((0.0, 0.0), |stat| (stat.own, stat.reaped))
}

fn children(pid: u32) -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = all.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
        .filter(|name| stat(name).is_some_and(|stat| stat.parent == pid))
        .collect()
}

/// The largest peak of resident memory among a process' children, in MiB.
pub(crate) fn largest_child(pid: u32) -> f64 {
    children(pid)
        .iter()
        .map(|child| peak(child))
        .fold(0.0, f64::max)
}

/// Peak resident memory in MiB (`VmHWM`).
pub(crate) fn peak(pid: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// The difference of two readings.
pub(crate) fn between(before: &Cpu, after: &Cpu) -> Cpu {
    let used = |(name, after): (&String, &f64)| {
        let before = before.get(name).copied().unwrap_or(0.0);
        (name.clone(), rounded(after - before))
    };
    after.iter().map(used).collect()
}

/// Rounds to three digits after the point: more would be noise.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// The median of some numbers.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    rounded(f64::midpoint(sorted[low], sorted[high]))
}
