//! Finds the known name that a misspelt one probably means.

/// The known name that is most similar. The shorter the name, the fewer characters may differ; upper and lower case count
/// as the same.
pub fn nearest<'a, N: AsRef<str> + ?Sized + 'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a N>,
) -> Option<&'a str> {
    let name = name.to_lowercase();
    let max = (name.chars().count() / 3).clamp(1, 3);
    let known = known.into_iter().map(AsRef::as_ref);
    let distances = known.map(|known| {
        let distance = strsim::damerau_levenshtein(&name, &known.to_lowercase());
        (distance, known)
    });
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= max).then_some(known)
}

/// The end of an error about an unknown name: `; did you mean "clicks"?`, or nothing.
pub fn did_you_mean<'a, N: AsRef<str> + ?Sized + 'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a N>,
) -> String {
    nearest(name, known).map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_name_is_found_and_no_other() {
        let known = ["country", "event_time", "url"];
        for (name, found) in [
            ("countyr", Some("country")),
            ("Country", Some("country")),
            ("event_tme", Some("event_time")),
            ("uri", Some("url")),
            ("title", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), found, "{name}");
        }
        assert_eq!(did_you_mean("urls", known), "; did you mean \"url\"?");
        assert_eq!(did_you_mean("title", known), "");
    }
}
