"""Sets up the emulator of AWS: the stack of deploy/aws/template.yaml, and the sample data in its data bucket.

    python seed.py TEMPLATE FOLDER

The cloud is found as every AWS client finds it (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID ...). Running it again
changes nothing. It ends when Athena has counted the rows of the table, and prints the count. It fails when Athena does not
honour ClientRequestToken, or when the result file is not where Athena reports it.
"""

import os
import sys
import time
import uuid
from pathlib import Path

from urllib.parse import urlparse

import boto3
from botocore.exceptions import ClientError

STACK = "clickstream-etl"


def make_stack(template: Path) -> dict[str, str]:
    """Creates the stack unless it is there, and returns its outputs."""
    cloudformation = boto3.client("cloudformation")
    try:
        cloudformation.create_stack(
            StackName=STACK, TemplateBody=template.read_text(), Capabilities=["CAPABILITY_IAM"]
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "AlreadyExistsException":
            raise
    try:
        cloudformation.get_waiter("stack_create_complete").wait(
            StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
    except Exception as error:
        failed = [
            f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', 'no reason given')}"
            for event in cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]
            if event["ResourceStatus"].endswith("FAILED")
        ]
        sys.exit(f"seed.py: the stack of {template} cannot be made ({error}):\n  " + "\n  ".join(failed))
    outputs = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def prepare_workgroups(workgroup: str) -> None:
    """Makes the stack's workgroup readable, and gives the workgroup `primary` its output location.

    MiniStack keeps the cutoff, a parameter of the template, as text, and the AWS SDKs cannot read GetWorkGroup then. A job
    without a workgroup runs in `primary`, which has no output location in a new account, and none in MiniStack."""
    athena = boto3.client("athena")
    configuration = athena.get_work_group(WorkGroup=workgroup)["WorkGroup"]["Configuration"]
    athena.update_work_group(
        WorkGroup=workgroup,
        ConfigurationUpdates={"BytesScannedCutoffPerQuery": int(configuration["BytesScannedCutoffPerQuery"])},
    )
    output = configuration["ResultConfiguration"]["OutputLocation"]
    athena.update_work_group(
        WorkGroup="primary", ConfigurationUpdates={"ResultConfigurationUpdates": {"OutputLocation": output}}
    )


def upload(folder: Path, bucket: str) -> None:
    """Puts the Parquet files where the table looks for them, those that are not there in this size."""
    s3 = boto3.client("s3")
    listed = s3.list_objects_v2(Bucket=bucket, Prefix="vod_clickstream/").get("Contents", [])
    there = {entry["Key"]: entry["Size"] for entry in listed}
    files = sorted(folder.glob("*.parquet"))
    if not files:
        sys.exit(f"seed.py: there are no Parquet files in {folder}")
    for file in files:
        key = f"vod_clickstream/{file.name}"
        if there.get(key) != file.stat().st_size:
            s3.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())


def check_token(request: dict[str, object], query: str) -> None:
    """Starts a query again: Athena must return the first execution, and refuse another query with its token."""
    athena = boto3.client("athena")
    again = athena.start_query_execution(**request)["QueryExecutionId"]
    if again != query:
        sys.exit(f"seed.py: Athena started {again} for the ClientRequestToken of {query}; cloud.py replaces what decides it")
    try:
        athena.start_query_execution(**request | {"QueryString": "SELECT 1"})
    except athena.exceptions.InvalidRequestException:
        return
    sys.exit(f"seed.py: Athena took another query with the ClientRequestToken of {query}; cloud.py replaces what decides it")


def check_file(status: dict[str, object], rows: list[dict[str, object]]) -> None:
    """Reads the result file where Athena reports it: it must have the rows that GetQueryResults returns."""
    place = urlparse(status["ResultConfiguration"]["OutputLocation"])
    file = boto3.client("s3").get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read().decode()
    wanted = "".join(f'"{row["Data"][0]["VarCharValue"]}"\n' for row in rows)
    if file != wanted:
        sys.exit(f"seed.py: the result file is {file!r} where it must be {wanted!r}; cloud.py replaces what writes it")


def count_rows(database: str, workgroup: str) -> int:
    athena = boto3.client("athena")
    request = {
        "QueryString": "SELECT count(*) AS clicks FROM vod_clickstream",
        "QueryExecutionContext": {"Database": database},
        "WorkGroup": workgroup,
        "ClientRequestToken": str(uuid.uuid4()),
    }
    query = athena.start_query_execution(**request)["QueryExecutionId"]
    check_token(request, query)
    deadline = time.monotonic() + 60
    while True:
        execution = athena.get_query_execution(QueryExecutionId=query)["QueryExecution"]
        state = execution["Status"]["State"]
        if state == "SUCCEEDED":
            break
        if state in ("FAILED", "CANCELLED") or time.monotonic() > deadline:
            sys.exit(f"seed.py: Athena cannot count the sample's rows: {execution['Status']}")
        time.sleep(0.1)
    rows = athena.get_query_results(QueryExecutionId=query)["ResultSet"]["Rows"]
    check_file(execution, rows)
    return int(rows[1]["Data"][0]["VarCharValue"])


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: seed.py TEMPLATE FOLDER")
    if "AWS_ENDPOINT_URL" not in os.environ:
        # Without it boto3 would go to the real AWS, with any credentials that it finds.
        sys.exit("seed.py: AWS_ENDPOINT_URL is not set; this is for the local emulator only")
    outputs = make_stack(Path(sys.argv[1]))
    prepare_workgroups(outputs["WorkGroup"])
    upload(Path(sys.argv[2]), outputs["DataBucket"])
    rows = count_rows(outputs["Database"], outputs["WorkGroup"])
    print(f"{outputs['Database']}.vod_clickstream: {rows} rows", file=sys.stderr)


if __name__ == "__main__":
    main()
