//! A sample click-stream: any number of rows, each computed from its ordinal alone, so that a result is the same in every
//! process, with the difficult values of real data.

use std::fmt::Write as _;

use super::csv::Row;
use super::result::{Column, ResultSet};

/// The columns of [`clicks`]: `dt date, country varchar, url varchar, visits bigint, seconds double, seen_at timestamp`.
pub fn columns() -> Vec<Column> {
    vec![
        Column::new("dt", "date"),
        Column::new("country", "varchar"),
        Column::new("url", "varchar"),
        Column::new("visits", "bigint"),
        Column::new("seconds", "double"),
        Column::new("seen_at", "timestamp"),
    ]
}

/// `rows` clicks: 1 % of the countries NULL and some empty, URLs of 40 to 90 characters with a few quotes, commas, line
/// ends and letters beyond ASCII, NULL among the seconds.
pub fn clicks(rows: u64) -> ResultSet {
    ResultSet::generated(columns(), rows, click)
}

fn click(n: u64) -> Row {
    let dice = scrambled(n);
    let day = n % 8 + 1;
    let country = match dice % 200 {
        0 | 1 => None,
        2..=4 => Some(String::new()),
        other => Some(country(other)),
    };
    let seconds = (dice >> 8) % 10_000;
    let time = (dice >> 24) % 86_400_000;
    let (hours, minutes, millis) = (time / 3_600_000, time / 60_000 % 60, time % 60_000);
    vec![
        Some(format!("2018-04-{day:02}")),
        country,
        Some(url(n, dice)),
        Some((dice % 9_999 + 1).to_string()),
        (!dice.is_multiple_of(17)).then(|| format!("{}.{}", seconds / 10, seconds % 10)),
        Some(format!(
            "2018-04-{day:02} {hours:02}:{minutes:02}:{:02}.{:03}",
            millis / 1_000,
            millis % 1_000
        )),
    ]
}

/// Two letters, one of some 190 codes.
fn country(n: u64) -> String {
    let letter = |n: u64| char::from(b'A' + u8::try_from(n % 26).expect("below 26"));
    [letter(n / 8), letter(n)].iter().collect()
}

fn url(n: u64, dice: u64) -> String {
    let title = dice >> 16 & 0xff_ffff;
    let mut url = format!("https://www.netflix.com/title/{title:08}?row={n:010}");
    let tail = (dice >> 40) % 40;
    for step in 0..tail {
        url.push(char::from(
            b'a' + u8::try_from((dice >> (step % 50)) % 26).expect("below 26"),
        ));
    }
    match dice % 97 {
        0 => url.push_str("\"q\""),
        1 => url.push_str(",b"),
        2 => url.push_str("\nline"),
        3 => url.push_str("é漢"),
        4 => write!(url, "%20{title:x}").expect("a String takes everything"),
        _ => {}
    }
    url
}

/// `SplitMix64`'s last step: neighbours get unrelated bits.
fn scrambled(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clicks_have_nulls_empty_strings_and_special_characters() {
        let rows = clicks(20_000).range(0, 20_000);
        let nulls = rows.iter().filter(|r| r[1].is_none()).count();
        assert!((100..400).contains(&nulls), "{nulls} NULL countries");
        assert!(rows.iter().any(|r| r[1].as_deref() == Some("")));
        assert!(rows.iter().any(|r| r[4].is_none()));
        let urls = || rows.iter().filter_map(|r| r[2].as_deref());
        for awkward in ["\"", ",", "\n", "é"] {
            assert!(urls().any(|u| u.contains(awkward)), "no {awkward:?}");
        }
        let lengths = urls().map(|u| u.chars().count());
        let (shortest, longest) = lengths.fold((usize::MAX, 0), |(a, b), l| (a.min(l), b.max(l)));
        assert!(shortest >= 40 && longest <= 105, "{shortest}..{longest}");
    }

    #[test]
    fn row_depends_on_its_ordinal_alone() {
        assert_eq!(clicks(10).row(7), clicks(1_000_000_000).row(7));
    }
}
