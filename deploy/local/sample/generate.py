"""Makes the sample click-stream: about a million clicks of twelve days, one Parquet file per day.

    python generate.py FOLDER

Every value comes from MD5 of the click's number, so each run on each machine makes the same rows. The clicks have the
difficulties of real data: a page that nearly always wins, real ties, URLs of more than 255 characters that win,
percent-encoding, text outside of ASCII, quotes, commas and a line break within URLs, and country codes that are empty,
missing or none ('A1' is an anonymous proxy, 'A2' a satellite).
"""

import shutil
import sys
from pathlib import Path

import duckdb

CLICKS = 1_000_000
FIRST_DAY = "2018-03-30"
DAYS = 12

# ISO 3166-1, roughly by how many clicks come from there: 232 of them, so that a week has 1,624 winners, and 46 ties more.
COUNTRIES = """
US BR GB CA MX DE FR AU IT ES AR NL CO SE CL NO DK PL IN JP BE FI PT IE CH AT NZ PE TR ZA KR TW PH SG MY TH ID AE SA IL GR
RO CZ HU RU UA EG EC VE UY CR PA DO GT SV HN PY BO NI JM TT PR HK VN KW QA BH OM LB JO MA TN DZ NG KE GH HR RS SI SK BG
LT LV EE IS LU MT CY AL MK BA ME MD GE AM AZ KZ UZ KG TJ TM MN LK BD NP PK MV MM KH LA BN MO PG FJ NC PF GU AS MP WS TO
VU SB KI FM MH PW NR TV CK NU TK WF MU RE SC MG MZ ZW ZM BW NA AO MW TZ UG RW BI ET ER DJ SO SD SS LY CM GA CG CD CF TD NE
ML BF CI SN GM GN GW SL LR TG BJ MR CV ST GQ KM YT LS SZ SH IQ YE AF PS IR BB LC VC GD AG DM KN BS BZ GY SR GF GP MQ AW
CW SX BQ BL MF KY BM TC VG VI AI MS HT FK PM GL FO GI AD MC SM LI VA JE GG IM AX BY AQ GS
""".split()

# What wins instead of the start page, here and there. The long one and those with quotes, commas and a line break are
# what a hasty loader trips over.
FAVOURITES = [
    "https://www.netflix.com/title/80057281",
    "https://www.netflix.com/watch/80192098?trackId=14170287&tctx=0,1,c4b1ff23-5a0e-4b5c,\"row\",'7'",
    "https://www.netflix.com/search?q=caf%C3%A9%20soci%C3%A9t%C3%A9%20%26%20more",
    "https://www.netflix.com/search?q=東京物語",
    "https://www.netflix.com/search?q=Ødipus ödipus Эдип 🎬",
    "https://www.netflix.com/search?q=back\\slash\\.\\N\ttab",
    "https://www.netflix.com/search?q=two\nlines",
    "https://www.netflix.com/watch/80117540?trackId=13752289&tctx=" + "%2C".join(f"{n:08x}" for n in range(40)),
]


def generate(folder: Path) -> None:
    db = duckdb.connect()
    # One thread writes each file's rows in one order, so that the files are the same, too.
    db.execute("SET threads = 1; SET TimeZone = 'UTC'")
    db.execute("CREATE TABLE favourites AS SELECT unnest(range(len($1))) AS n, unnest($1) AS url", [FAVOURITES])
    db.execute("CREATE TABLE ranked AS SELECT unnest(range(len($1))) AS rank, unnest($1) AS code", [COUNTRIES])

    # A number in [0, 1) that depends on its name alone.
    db.execute("CREATE MACRO draw(name) AS (md5_number_upper(name) >> 11)::DOUBLE / 9007199254740992.0")

    # Each country owns a piece of [0, 1), the first ones larger pieces; the last two hundredths are not countries.
    db.execute("""
        CREATE TABLE countries AS
        WITH weighed AS (SELECT code, rank, 0.98 / (rank + 20) AS weight FROM ranked),
             scaled  AS (SELECT code, rank, weight * 0.98 / (SELECT sum(weight) FROM weighed) AS weight FROM weighed)
        SELECT code, sum(weight) OVER (ORDER BY rank) - weight AS starts FROM scaled
        UNION ALL VALUES ('', 0.980), (NULL, 0.986), ('A1', 0.991), ('A2', 0.996)
    """)

    db.execute(f"""
        CREATE TABLE drawn AS
        SELECT i AS event_id,
               strftime(DATE '{FIRST_DAY}' + floor(draw('day ' || i) * {DAYS})::INTEGER, '%Y-%m-%d') AS dt,
               draw('country ' || i) AS where_from,
               draw('page ' || i) AS page,
               draw('title ' || i) AS title,
               draw('person ' || i) AS person,
               draw('time ' || i) AS moment
        FROM range({CLICKS}) AS numbers(i)
    """)

    # In one of eight (country, day) a favourite wins over the start page.
    db.execute(f"""
        CREATE TABLE clicks AS
        SELECT d.event_id, d.dt, c.code AS country, d.person, d.moment,
               CASE
                   WHEN draw('local ' || coalesce(c.code, '?') || d.dt) < 0.125 AND page < 0.45 THEN f.url
                   WHEN page < 0.50 THEN 'https://www.netflix.com/browse'
                   WHEN page < 0.56 THEN 'https://www.netflix.com/browse/my-list'
                   WHEN page < 0.62 THEN 'https://www.netflix.com/browse/genre/' || (100 + floor(title * title * 300)::INTEGER)
                   WHEN page < 0.66 THEN 'https://www.netflix.com/'
                   WHEN page < 0.70 THEN 'https://www.netflix.com/search?q=' ||
                                         ['dark', 'la%20casa%20de%20papel', 'füße', '%E6%84%9B', 'a+b'][1 + floor(title * 5)::INTEGER]
                   WHEN page < 0.88 THEN 'https://www.netflix.com/title/' || (80000000 + floor(title * title * 3000)::INTEGER)
                   ELSE 'https://www.netflix.com/watch/' || (80000000 + floor(title * title * 3000)::INTEGER) ||
                        '?trackId=' || floor(person * 1000)::INTEGER ||
                        CASE WHEN page < 0.90 THEN '&tctx=' || repeat('0%2C1%2C' || md5(d.event_id::VARCHAR), 8) ELSE '' END
               END AS url
        FROM drawn AS d
        ASOF JOIN countries AS c ON d.where_from >= c.starts
        JOIN favourites AS f
          ON f.n = floor(draw('favourite ' || coalesce(c.code, '?') || d.dt) * {len(FAVOURITES)})::INTEGER
    """)

    # Ties: in a few (country, day) the second page gets the clicks that it lacks.
    db.execute("""
        CREATE TABLE ties AS
        WITH counted AS (SELECT country, dt, url, count(*) AS n FROM clicks GROUP BY ALL),
             placed  AS (SELECT *, row_number() OVER (PARTITION BY country, dt ORDER BY n DESC, url) AS place FROM counted),
             two     AS (SELECT country, dt, max(n) FILTER (place = 1) AS best, max(n) FILTER (place = 2) AS second,
                                max(url) FILTER (place = 2) AS url
                         FROM placed WHERE place <= 2 GROUP BY ALL)
        SELECT country, dt, url, unnest(range(best - second)) AS n
        FROM two WHERE draw('tie ' || coalesce(country, '?') || dt) < 0.027
    """)
    db.execute(f"""
        INSERT INTO clicks
        SELECT {CLICKS} - 1 + row_number() OVER (ORDER BY dt, country, n), dt, country,
               draw('person ' || key), draw('time ' || key), url
        FROM (SELECT *, concat_ws('/', dt, country, n) AS key FROM ties)
    """)

    for (day,) in db.execute("SELECT DISTINCT dt FROM clicks ORDER BY dt").fetchall():
        target = folder / f"{day}.parquet"
        db.execute(f"""
            COPY (
                SELECT event_id::BIGINT AS event_id,
                       (dt::TIMESTAMP + to_milliseconds(floor(moment * 86400000)::BIGINT))::TIMESTAMP_MS AS event_time,
                       dt,
                       'd-' || substr(md5(floor(person * 90000)::VARCHAR), 1, 12) AS device_id,
                       CASE WHEN person < 0.93 THEN 7000000 + floor(person * 60000)::BIGINT END AS user_id,
                       country AS server_request_country_code,
                       CASE WHEN url LIKE '%/watch/%' THEN 'watch' WHEN url LIKE '%/title/%' THEN 'title'
                            WHEN url LIKE '%/search%' THEN 'search' ELSE 'browse' END AS webpage_type,
                       url AS event_url,
                       nullif(regexp_extract(url, '/(?:watch|title)/([0-9]+)', 1), '')::BIGINT AS title_id,
                       CASE WHEN moment * 1000 % 1 < 0.7 THEN round(power(moment * 7919 % 1, 3) * 5400, 1) END
                           AS duration_seconds
                FROM clicks WHERE dt = '{day}' ORDER BY event_id
            ) TO '{str(target).replace("'", "''")}' (FORMAT parquet, COMPRESSION zstd)
        """)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: generate.py FOLDER")
    folder = Path(sys.argv[1])
    # The folder is complete or not there: an interrupted run leaves only what the next one deletes.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    generate(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


if __name__ == "__main__":
    main()
