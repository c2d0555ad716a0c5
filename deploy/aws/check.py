"""Checks the permissions that the stack gives.

    python check.py

The extractor's policy allows the operations of Athena that the extractor's code calls, every one and no other; and of S3
at least those that it calls. Nobody may read or list more of the data bucket than the table's prefix. What Athena does in S3 and Glue in the caller's name no code of ours shows: these actions are
listed with their sources in docs/aws.md, and the list must be what the template has.
"""

import re
import sys
from pathlib import Path

import boto3
import yaml
from botocore import xform_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The table's folder in the data bucket.
PREFIX = "vod_clickstream"
# The policies, and their headings in docs/aws.md.
POLICIES = {"ExtractorPolicy": "The extractor", "SeedPolicy": "Uploads of data", "CrawlerRole": "The crawler"}


class Template(yaml.SafeLoader):
    """CloudFormation's YAML, with its functions as plain text."""


Template.add_multi_constructor(
    "!", lambda loader, suffix, node: f"!{suffix} {node.value}" if isinstance(node, yaml.ScalarNode) else f"!{suffix}"
)


def listed_or_one(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def statements_of(resource: dict) -> list[dict]:
    properties = resource["Properties"]
    documents = [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
    documents += [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    return [statement for document in documents for statement in document["Statement"]]


def actions_of(resource: dict) -> set[str]:
    return {action for statement in statements_of(resource) for action in listed_or_one(statement["Action"])}


def beyond_the_prefix(resource: dict) -> list[str]:
    """What a policy allows in the data bucket beyond the table's prefix. Where a bucket is, every reader may know."""
    beyond = []
    for statement in statements_of(resource):
        places = [place for place in listed_or_one(statement["Resource"]) if "DataBucket.Arn" in place]
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", [])
        of_table = bool(prefixes) and all(re.fullmatch(rf"{PREFIX}(/\*)?", prefix) for prefix in prefixes)
        for action in listed_or_one(statement["Action"]):
            of_bucket = action in {"s3:GetBucketLocation", "s3:ListBucketMultipartUploads"}
            beyond += [
                f"{action} on {place}"
                for place in places
                if not (of_bucket or (action == "s3:ListBucket" and of_table) or place.endswith(f"}}/{PREFIX}/*"))
            ]
    return beyond


def operations_called(service: str) -> set[str]:
    """The service's operations that are called in files that name its SDK, by AWS' own list of operations."""
    client = boto3.client(service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    sources = [file.read_text() for file in ROOT.glob("extractor/src/**/*.rs")]
    code = "\n".join(source for source in sources if f"aws_sdk_{service}" in source)
    return {
        f"{service}:{name}"
        for name in client.meta.service_model.operation_names
        if re.search(rf"\.{xform_name(name)}\(\)", code)
    }


def listed(heading: str) -> set[str]:
    """The actions in the first column of the table below a heading of docs/aws.md."""
    page = (ROOT / "docs/aws.md").read_text()
    section = re.search(rf"^### {heading}$(.*?)(?=^##|\Z)", page, re.S | re.M)
    if not section:
        return set()
    cells = re.findall(r"^\| (`[^|]+) \|", section[1], re.M)
    return set(re.findall(r"`(\w+:\w+)`", " ".join(cells)))


def compare(what: str, here: str, found: set[str], there: str, expected: set[str]) -> list[str]:
    problems = []
    if more := sorted(found - expected):
        problems.append(f"{what}: {here}, not {there}: {', '.join(more)}")
    if less := sorted(expected - found):
        problems.append(f"{what}: {there}, not {here}: {', '.join(less)}")
    return problems


def main() -> None:
    resources = yaml.load((HERE / "template.yaml").read_text(), Loader=Template)["Resources"]
    allowed = {name: actions_of(resources[name]) for name in POLICIES}
    extractor = allowed["ExtractorPolicy"]
    called = operations_called("athena")
    problems = compare(
        "Athena", "allowed by the extractor's policy", {a for a in extractor if a.startswith("athena:")}, "called by its code", called
    )
    reads = operations_called("s3")
    if not called or not reads or (more := sorted(reads - extractor)):
        problems.append(f"S3: called by the extractor's code, not allowed: {', '.join(more or ['nothing was found'])}")
    for name, heading in POLICIES.items():
        problems += compare(heading, "in the template", allowed[name], "in docs/aws.md", listed(heading))
    for action in set().union(*allowed.values()):
        if "*" in action:
            problems.append(f"{action} is more than the pipeline needs")
    for name in POLICIES:
        problems += [f"{name} reaches beyond the table's prefix: {what}" for what in beyond_the_prefix(resources[name])]
    if problems:
        sys.exit("aws/check.py:\n  " + "\n  ".join(problems))
    print(
        f"aws/check.py: {', '.join(sorted(called | reads))} are called and allowed; "
        f"{sum(map(len, allowed.values()))} actions are listed with their sources"
    )


if __name__ == "__main__":
    main()
