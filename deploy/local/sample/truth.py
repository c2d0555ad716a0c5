"""Prints what the job most_visited_url must load, as CSV, straight from the sample's Parquet files.

    python truth.py FOLDER [FROM TO]        days as YYYY-MM-DD, the job's default week when absent

It shares nothing with the job's SQL on purpose: no common table expression, no IN, no text comparison of days; it counts
and ranks in one pass. The rows are sorted by their bytes.
"""

import csv
import sys
from pathlib import Path

import duckdb

QUERY = """
    SELECT country, day, url, visits
    FROM (
        SELECT server_request_country_code AS country, strptime(dt, '%Y-%m-%d')::DATE AS day, event_url AS url,
               count(*) AS visits,
               rank() OVER (PARTITION BY server_request_country_code, dt ORDER BY count(*) DESC) AS place
        FROM read_parquet($1)
        WHERE server_request_country_code IS NOT NULL
          AND server_request_country_code <> '' AND server_request_country_code <> 'A1' AND server_request_country_code <> 'A2'
        GROUP BY server_request_country_code, dt, event_url
    )
    WHERE place = 1 AND day >= $2::DATE AND day < $3::DATE + 1
    ORDER BY country, day, url
"""


def main() -> None:
    if len(sys.argv) not in (2, 4):
        sys.exit("usage: truth.py FOLDER [FROM TO]")
    files = sorted(str(file) for file in Path(sys.argv[1]).glob("*.parquet"))
    first, last = sys.argv[2:] or ("2018-04-02", "2018-04-08")
    out = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    out.writerow(["country_code", "date", "most_visited_url", "total_visited"])
    out.writerows(duckdb.connect().execute(QUERY, [files, first, last]).fetchall())


if __name__ == "__main__":
    main()
