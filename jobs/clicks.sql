-- Every click of the days, as it is: the job's rules check the rows.
SELECT
    event_id,
    event_time,
    dt,
    device_id,
    user_id,
    server_request_country_code,
    webpage_type,
    event_url,
    title_id,
    duration_seconds
FROM vod_clickstream
WHERE dt BETWEEN CAST(:from AS varchar) AND CAST(:to AS varchar)
