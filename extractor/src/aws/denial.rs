//! Who refused a call or a query, and what to allow: AWS says it in sentences, of which only a part is documented. The
//! wordings are those of Athena's reasons and of IAM's messages as their users report them.

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    /// The service that refused.
    pub(crate) by: &'static str,
    /// The IAM action, where one is missing.
    pub(crate) action: Option<String>,
    pub(crate) remedy: String,
}

/// The action that AWS's message names, such as `athena:GetWorkGroup` in 'User: .. is not
/// authorized to perform: athena:GetWorkGroup on resource: ..'.
pub fn denied_action(message: &str) -> Option<&str> {
    let rest = message.split_once("not authorized to perform: ")?.1;
    let action = rest.split([' ', ',', ';']).next()?;
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
    let (service, name) = action.split_once(':')?;
    (is_name(&service.replace('-', "")) && is_name(name)).then_some(action)
}

/// What a message of AWS, or the reason of a failed query, says of a refusal.
pub(crate) fn of_message(message: &str) -> Option<Denial> {
    if message.contains("Insufficient Lake Formation permission")
        || message.contains("lakeformation:")
        || message.contains("Principal does not have any privilege")
        || message.contains("Relation contains no accessible columns")
    {
        return Some(lake_formation());
    }
    if let Some(action) = denied_action(message) {
        return Some(of_action(action, message));
    }
    if let Some(remedy) = of_workgroup(message) {
        return Some(Denial {
            by: "the workgroup",
            action: None,
            remedy: remedy.to_owned(),
        });
    }
    if message.contains("when writing output") || message.contains("output bucket") {
        return Some(results());
    }
    // Trino's words, and those of S3.
    if message.contains("Permission denied on S3 path")
        || message.contains("Access Denied (Service: Amazon S3")
        || message.contains("Access Denied (Service: S3")
    {
        return Some(data());
    }
    // Older answers of Athena say no more.
    (message.contains("Insufficient permissions to execute the query")).then(|| Denial {
        by: "S3, Glue or Lake Formation",
        action: None,
        remedy: format!("{}; {}", data().remedy, lake_formation().remedy),
    })
}

/// The same for a failed query, with Athena's error type (Athena User Guide, "Athena error catalog").
pub(crate) fn of_query(reason: &str, error_type: Option<i32>) -> Option<Denial> {
    of_message(reason).or_else(|| match error_type? {
        234 => Some(lake_formation()),
        401 | 402 => Some(results()),
        1501 => Some(data()),
        _ => None,
    })
}

fn of_action(action: &str, message: &str) -> Denial {
    let (service, _) = action.split_once(':').unwrap_or_default();
    let (by, place) = match service {
        "glue" => (
            "Glue",
            ", for the catalog, the database and the table (and for the database default)",
        ),
        "kms" => ("KMS", " for this key, and in the key's own policy"),
        "s3" => (
            "S3",
            " for this bucket and prefix; where another account owns the bucket, in the bucket's policy as well",
        ),
        "athena" => ("Athena", " for the workgroup"),
        "sts" => ("STS", " for this role, and let the role trust it"),
        _ => ("AWS", ""),
    };
    let mut remedy = format!("allow {action} in the policy of the extractor's user or role{place}");
    // It wins over every policy that allows.
    if message.contains("explicit deny") {
        remedy += "; remove the explicit deny that the message names";
    }
    Denial {
        by,
        action: Some(action.to_owned()),
        remedy,
    }
}

fn of_workgroup(message: &str) -> Option<&'static str> {
    let names = |what| message.contains("orkGroup") && message.contains(what);
    Some(if names("is disabled") {
        "enable the workgroup, or name another in the job's [source]"
    } else if names("is not found") {
        "name a workgroup of this region and account in the job's [source]"
    } else if message.contains("Bytes scanned limit was exceeded") {
        "narrow the query, or raise the limit of the workgroup for one query"
    } else if message.contains("output location is required") {
        "set workgroup or output_location in the job's [source], or an output location in the workgroup"
    } else if message.contains("managed query results enabled") {
        "remove output_location from the job's [source]: the workgroup keeps results itself"
    } else {
        return None;
    })
}

fn lake_formation() -> Denial {
    Denial {
        by: "Lake Formation",
        action: Some("lakeformation:GetDataAccess".to_owned()),
        remedy: "in Lake Formation, grant DESCRIBE on the database and SELECT on the table to the extractor's user or role, and allow lakeformation:GetDataAccess in its policy".to_owned(),
    }
}

fn results() -> Denial {
    Denial {
        by: "S3 (results)",
        action: Some("s3:PutObject".to_owned()),
        remedy: "allow s3:PutObject, s3:GetObject, s3:GetBucketLocation and s3:ListBucket at the output location in the policy of the extractor's user or role; the bucket has to be in Athena's region and of the expected owner".to_owned(),
    }
}

fn data() -> Denial {
    Denial {
        by: "S3 (data)",
        action: Some("s3:GetObject".to_owned()),
        remedy: "allow s3:GetObject on the table's prefix and s3:ListBucket on its bucket in the policy of the extractor's user or role, and kms:Decrypt where the data is encrypted with a key of KMS".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denial_names_its_action() {
        let message = "User: arn:aws:iam::1:user/x is not authorized to perform: s3:ListBucket on resource: \"arn\" because ...";
        assert_eq!(denied_action(message), Some("s3:ListBucket"));
        assert_eq!(denied_action("Access Denied (AccessDenied)"), None);
        for other in ["this", "a:", ":b", "'a:b'"] {
            let message = format!("User: x is not authorized to perform: {other}");
            assert_eq!(denied_action(&message), None, "{other}");
        }
    }

    /// What AWS says, who refused, and a part of the remedy.
    const REFUSALS: [(&str, &str, &str); 13] = [
        (
            "User: arn:aws:iam::1:user/x is not authorized to perform: glue:GetTable on resource: arn:aws:glue:eu-west-2:1:catalog because no identity-based policy allows the glue:GetTable action (Service: AmazonDataCatalog; Status Code: 400; Error Code: AccessDeniedException; Request ID: 0; Proxy: null)",
            "Glue",
            "allow glue:GetTable in",
        ),
        (
            "Insufficient permissions to execute the query. Insufficient Lake Formation permission(s) on clicks",
            "Lake Formation",
            "grant",
        ),
        (
            "COLUMN_NOT_FOUND: line 1:8: Relation contains no accessible columns",
            "Lake Formation",
            "SELECT",
        ),
        (
            "User: arn:aws:iam::1:user/x is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:eu-west-2:1:key/0 because no identity-based policy allows the kms:Decrypt action",
            "KMS",
            "the key's own policy",
        ),
        (
            "Access denied when writing output to url: s3://results/prefix/0.csv . Please ensure you are allowed to access the S3 bucket.",
            "S3 (results)",
            "s3:PutObject",
        ),
        (
            "Unable to verify/create output bucket results",
            "S3 (results)",
            "s3:GetBucketLocation",
        ),
        (
            "Permission denied on S3 path: s3://data/vod_clickstream/",
            "S3 (data)",
            "the table's prefix",
        ),
        (
            "HIVE_CANNOT_OPEN_SPLIT: Access Denied (Service: Amazon S3; Status Code: 403; Error Code: AccessDenied)",
            "S3 (data)",
            "s3:GetObject",
        ),
        (
            "Insufficient permissions to execute the query.",
            "S3, Glue or Lake Formation",
            "s3:ListBucket",
        ),
        (
            "You are not authorized to perform: athena:StartQueryExecution on the resource. After your AWS administrator or you have updated your permissions, please try again.",
            "Athena",
            "for the workgroup",
        ),
        ("WorkGroup etl is disabled.", "the workgroup", "enable"),
        (
            "Query cancelled! : Bytes scanned limit was exceeded",
            "the workgroup",
            "raise the limit",
        ),
        (
            "User: x is not authorized to perform: s3:GetObject on resource: \"r\" with an explicit deny in a service control policy",
            "S3",
            "remove the explicit deny",
        ),
    ];

    #[test]
    fn refusals_are_told_apart() {
        for (message, by, remedy) in REFUSALS {
            let found = of_message(message).unwrap_or_else(|| panic!("{message}"));
            assert_eq!(found.by, by, "{message}");
            assert!(found.remedy.contains(remedy), "{message}: {}", found.remedy);
        }
        for other in [
            "line 1:8: Column 'x' cannot be resolved",
            "Table clicks does not exist",
        ] {
            assert_eq!(of_message(other), None, "{other}");
        }
        let by = |error_type| of_query("no words", error_type).map(|denial| denial.by);
        assert_eq!(by(Some(1501)), Some("S3 (data)"));
        assert_eq!(by(Some(234)), Some("Lake Formation"));
        assert_eq!(by(Some(1006)), None);
    }
}
