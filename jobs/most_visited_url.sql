-- Every URL with the highest number of visits of its country and day, ties included.
WITH visits AS (
    SELECT
        server_request_country_code AS country_code,
        dt,
        event_url,
        count(*) AS total_visited
    FROM vod_clickstream
    -- dt is text that sorts as its day. A comparison as text lets Athena skip, and not charge for, the parts of the Parquet
    -- files whose days are out of range.
    WHERE dt BETWEEN CAST(:from AS varchar) AND CAST(:to AS varchar)
        -- Not countries: unknown, anonymous proxy, satellite. NULL is unknown, too, and NOT IN leaves it out.
        AND server_request_country_code NOT IN ('', 'A1', 'A2')
    GROUP BY server_request_country_code, dt, event_url
)
SELECT
    country_code,
    CAST(dt AS date) AS "date",
    event_url AS most_visited_url,
    total_visited
FROM visits
WHERE (country_code, dt, total_visited) IN (
    SELECT country_code, dt, max(total_visited)
    FROM visits
    GROUP BY country_code, dt
)
