-- Every click of the days asked for, as it is: what is wrong with a row is for the job's rules to say.
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
