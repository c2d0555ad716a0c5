//! Replaces the values that a job hides. Nothing after the transformer sees them.

use common::job::Mask;
use sha2::{Digest, Sha256};

const STARS: &str = "***";
/// The number of characters that `last4` shows, if they are at most half of the value.
const SHOWN: usize = 4;

/// The mask of a value. Equal values have equal masks.
pub(crate) fn masked(mask: Mask, value: &str) -> String {
    match mask {
        Mask::Sha256 => format!("{:x}", Sha256::digest(value)),
        Mask::Redact => STARS.to_owned(),
        Mask::Last4 => {
            let length = value.chars().count();
            let shown = if length >= 2 * SHOWN { SHOWN } else { 0 };
            let last: String = value.chars().skip(length - shown).collect();
            format!("****{last}")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn masks_are_as_documented() {
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(masked(Mask::Sha256, "abc"), sha256);
        assert_eq!(masked(Mask::Redact, "abc"), "***");
        for (value, wanted) in [
            ("4111111111111234", "****1234"),
            ("12345678", "****5678"),
            ("1234567", "****"),
            ("äöüßäöüß", "****äöüß"),
            ("", "****"),
        ] {
            assert_eq!(masked(Mask::Last4, value), wanted);
        }
    }

    proptest! {
        #[test]
        fn mask_fits_its_declared_length(value in ".{0,40}") {
            for mask in [Mask::Sha256, Mask::Redact, Mask::Last4] {
                prop_assert!(masked(mask, &value).chars().count() <= mask.length() as usize);
            }
        }
    }
}
