"""Prints what the job clicks must load, as COUNT DIGEST, straight from the sample's Parquet files.

    python digest.py FOLDER FROM TO        days as YYYY-MM-DD

The digest is a sum over the rows, so that their order does not matter. It has a counterpart in SQL in deploy/compose/test.
The job's rules reject clicks without a country, and no others in the sample.
"""

import sys
from pathlib import Path

import duckdb

QUERY = """
    SELECT count(*), coalesce(sum(('0x' || substr(md5(concat_ws('|',
        event_id, epoch_us(event_time), dt, device_id, user_id, server_request_country_code, webpage_type, event_url, title_id
    )), 1, 15))::BIGINT), 0)
    FROM read_parquet($1)
    WHERE strptime(dt, '%Y-%m-%d')::DATE BETWEEN $2::DATE AND $3::DATE
      AND server_request_country_code NOT IN ('', 'A1', 'A2')
"""


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: digest.py FOLDER FROM TO")
    files = sorted(str(file) for file in Path(sys.argv[1]).glob("*.parquet"))
    print(*duckdb.connect().execute(QUERY, [files, *sys.argv[2:]]).fetchone())


if __name__ == "__main__":
    main()
