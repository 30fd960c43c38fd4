-- How long a row is kept is a column of the row: what its parameter's period made of its time. Whoever changes a period has the
-- column rewritten; whoever reads leaves out what has expired, merged or not.
ALTER TABLE samples ADD COLUMN IF NOT EXISTS
    expires DateTime('UTC') DEFAULT toDateTime(4294967295, 'UTC') CODEC(DoubleDelta, ZSTD(1)) COMMENT 'when the row may go; 2106-02-07 06:28:15 stands for never';

-- The condition says nothing new and is needed: without one a mutation drops every row of a part whose rows had all expired before
-- it, also those that it has just given a longer life.
ALTER TABLE samples MODIFY TTL expires DELETE WHERE expires < toDateTime(4294967295, 'UTC')
    SETTINGS materialize_ttl_after_modify = 0;

-- Expired rows go with any merge; a merge for their sake comes once an hour and partition at most.
ALTER TABLE samples MODIFY SETTING merge_with_ttl_timeout = 3600;

-- The newest sample of every series whose samples expire: it outlives its row in samples. A series that is kept for ever may be
-- missing, so the newest of a series is the newest of both. Filled by latest_filled; read it with FINAL.
CREATE TABLE IF NOT EXISTS latest (
    tenant     LowCardinality(String),
    series     UInt64 COMMENT 'as in samples, like all that follows',
    ts         DateTime64(3, 'UTC'),
    kind       Enum8('double' = 0, 'long' = 1, 'bool' = 2, 'string' = 3, 'json' = 4, 'date' = 5),
    double     Float64,
    long       Int64,
    text       String CODEC(ZSTD(1)),
    quality    Nullable(Int32),
    version    UInt64,
    is_deleted UInt8 DEFAULT 0 COMMENT '1: a deletion; what samples still has counts then',
    rank       UInt128 DEFAULT bitOr(bitShiftLeft(toUInt128(toUnixTimestamp64Milli(ts)), 64), toUInt128(version)) COMMENT 'time and version; the highest wins'
)
ENGINE = ReplacingMergeTree(rank, is_deleted)
ORDER BY (tenant, series)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- A part of every insert into samples that holds rows with a period.
CREATE MATERIALIZED VIEW IF NOT EXISTS latest_filled TO latest AS
SELECT tenant, series, ts, kind, double, long, text, quality, version, is_deleted
FROM samples
WHERE expires < toDateTime(4294967295, 'UTC') OR is_deleted = 1
ORDER BY ts DESC, version DESC
LIMIT 1 BY tenant, series;

-- One row per value with its names, for Power BI, Grafana and people. Filter it by `tenant` and `ts`. What has expired is not there.
CREATE OR REPLACE VIEW telemetry AS
SELECT
    s.tenant AS tenant,
    d.name AS device_name,
    p.name AS point_name,
    p.device AS device,
    p.key AS key,
    s.ts AS ts,
    s.kind AS kind,
    multiIf(s.kind = 'double', s.double, s.kind IN ('long', 'bool'), toFloat64(s.long), NULL) AS number,
    multiIf(s.kind IN ('string', 'json'), s.text,
            s.kind = 'double', toString(s.double),
            s.kind = 'bool', if(s.long = 1, 'true', 'false'),
            s.kind = 'date', toString(fromUnixTimestamp64Milli(s.long, 'UTC')),
            toString(s.long)) AS value,
    s.quality AS quality,
    p.unit AS unit,
    s.series AS series
FROM samples AS s FINAL
ANY LEFT JOIN (SELECT * FROM points FINAL) AS p ON s.tenant = p.tenant AND s.series = p.series
ANY LEFT JOIN (SELECT * FROM devices FINAL) AS d ON p.tenant = d.tenant AND p.device = d.device
WHERE s.expires > now()
SETTINGS do_not_merge_across_partitions_select_final = 1;
