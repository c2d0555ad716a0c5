//! What `etl prune` answers.

use super::{counted, print, print_json};
use crate::Failure;
use crate::books::Pruned;

/// `etl prune`.
pub(crate) fn pruned(pruned: Pruned, dry_run: bool, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&pruned)
    } else {
        print(&sentence(pruned, dry_run))
    }
}

fn sentence(pruned: Pruned, dry_run: bool) -> String {
    let (rows, letters) = (
        counted(pruned.rejected_values, "rejected row"),
        counted(pruned.dead_letter_bodies, "dead letter"),
    );
    if dry_run {
        format!("would forget the values of {rows} and the bodies of {letters}")
    } else {
        format!("forgot the values of {rows} and the bodies of {letters}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_and_what_would_be() {
        let pruned = Pruned {
            rejected_values: 12_345,
            dead_letter_bodies: 2,
        };
        insta::assert_snapshot!(format!(
            "{}\n{}\n{}",
            sentence(pruned, false),
            sentence(pruned, true),
            serde_json::to_string_pretty(&pruned).unwrap()
        ));
    }
}
