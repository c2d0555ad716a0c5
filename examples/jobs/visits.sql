-- The visits of each country on one day, without what is no country: unknown, anonymous proxy, satellite.
SELECT
    server_request_country_code AS country_code,
    CAST(dt AS date) AS "date",
    count(*) AS visits
FROM vod_clickstream
WHERE dt = CAST(:day AS varchar)
    AND server_request_country_code NOT IN ('A1', 'A2')
GROUP BY server_request_country_code, dt
