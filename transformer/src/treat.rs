//! What a job does to a value before its conversion: `trim`, then `null_if`, then `case`.

use std::borrow::Cow;
use std::collections::HashSet;

use common::job::{Case, ColumnSpec};

/// The settings of one column; most columns have none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Treatment {
    trim: bool,
    null_if: HashSet<String>,
    case: Option<Case>,
}

impl Treatment {
    pub(crate) fn new(spec: &ColumnSpec) -> Self {
        Self {
            trim: spec.trim,
            null_if: spec
                .null_if
                .iter()
                .map(|value| value.as_str().to_owned())
                .collect(),
            case: spec.case,
        }
    }

    /// The value to convert; None where the job reads it as NULL.
    pub(crate) fn apply<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        let text = if self.trim { text.trim() } else { text };
        if !self.null_if.is_empty() && self.null_if.contains(text) {
            return None;
        }
        Some(match self.case {
            None => text.into(),
            Some(Case::Lower) => text.to_lowercase().into(),
            Some(Case::Upper) => text.to_uppercase().into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn treated(toml: &str, text: &str) -> Option<String> {
        let spec: ColumnSpec = toml::from_str(toml).unwrap();
        Treatment::new(&spec).apply(text).map(Cow::into_owned)
    }

    #[test]
    fn settings_apply_in_the_order_trim_null_if_case() {
        let all = "trim = true\nnull_if = [\"n/a\", \"\"]\ncase = \"upper\"";
        assert_eq!(treated(all, " n/a\t"), None);
        assert_eq!(treated(all, " \u{a0}\n"), None);
        assert_eq!(treated(all, " N/A ").as_deref(), Some("N/A"));
        assert_eq!(treated(all, " straße ").as_deref(), Some("STRASSE"));
        assert_eq!(treated("null_if = -1", "-1"), None);
        assert_eq!(treated("null_if = -1", " -1").as_deref(), Some(" -1"));
        assert_eq!(treated("case = \"lower\"", "ÀB").as_deref(), Some("àb"));
        assert_eq!(treated("", " a ").as_deref(), Some(" a "));
    }
}
