-- Samples as judged. One row per (tenant, series, ts) remains after replacement: the one with the highest version.
-- Read it with FINAL, or through the view `telemetry`. Values: `double` where kind is double, `long` where it is long, bool
-- (0, 1) or date (UTC milliseconds), `text` where it is string or json.
CREATE TABLE IF NOT EXISTS samples (
    tenant     LowCardinality(String) COMMENT 'who owns the series',
    series     UInt64 COMMENT 'id of (tenant, device, key); see table points',
    ts         DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)) COMMENT 'source time',
    kind       Enum8('double' = 0, 'long' = 1, 'bool' = 2, 'string' = 3, 'json' = 4, 'date' = 5) COMMENT 'type of the value',
    double     Float64 CODEC(ZSTD(1)) COMMENT 'value of kind double',
    long       Int64 CODEC(T64, ZSTD(1)) COMMENT 'value of kind long, bool or date',
    text       String CODEC(ZSTD(1)) COMMENT 'value of kind string or json',
    quality    Nullable(Int32) CODEC(ZSTD(1)) COMMENT 'as it came; NULL where none came',
    version    UInt64 CODEC(Delta, ZSTD(1)) COMMENT 'place in the log and conflict rule; the highest wins',
    is_deleted UInt8 DEFAULT 0 CODEC(ZSTD(1)) COMMENT '1: a deletion',
    -- The engine takes any number for a time or an Enum, and could not show the row afterwards.
    CONSTRAINT time_is_storable CHECK ts >= toDateTime64('1970-01-01 00:00:00', 3, 'UTC')
                                  AND ts < toDateTime64('2262-01-01 00:00:00', 3, 'UTC'),
    CONSTRAINT kind_is_known CHECK toInt8(kind) BETWEEN 0 AND 5,
    CONSTRAINT version_is_given CHECK version > 0
)
ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(ts)
ORDER BY (tenant, series, ts)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Which life of the log a version's epoch stands for.
CREATE TABLE IF NOT EXISTS log_epochs (
    topic       String,
    incarnation String COMMENT 'unique id of one life of the topic',
    epoch       UInt8,
    since       DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (topic, incarnation)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- How far each lane of the log is stored. A log that ends before it is an older copy.
CREATE TABLE IF NOT EXISTS lane_marks (
    topic    String,
    lane     UInt16,
    epoch    UInt8,
    received UInt64 COMMENT 'highest offset of the judged topic that is stored'
)
ENGINE = ReplacingMergeTree(received)
ORDER BY (topic, lane, epoch)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Dead letters: records that could not be used, with reason and position.
CREATE TABLE IF NOT EXISTS refused (
    at      DateTime64(3, 'UTC') COMMENT 'when it was set aside',
    reason  LowCardinality(String),
    detail  String,
    source  LowCardinality(String) COMMENT 'the dialect or worker that set it aside',
    tenant  LowCardinality(String),
    topic   LowCardinality(String) COMMENT 'where it stood; empty where it never got onto the log',
    lane    Int32,
    offset  Int64,
    row     Int32,
    body    String COMMENT 'its first 4 KiB',
    count   UInt32 COMMENT 'how many rows or records the letter stands for',
    letter  UInt64 COMMENT 'offset of the letter itself'
)
ENGINE = ReplacingMergeTree
ORDER BY letter
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What the series are: the catalogue's points and devices. `version` is made of the change's place in the catalogue's log.
-- Ordered by the id, because that is all that a deletion names. Read them with FINAL.
CREATE TABLE IF NOT EXISTS points (
    tenant     LowCardinality(String),
    series     UInt64,
    device     String COMMENT 'id of the device',
    key        String COMMENT 'name of the point on its device',
    point      String COMMENT 'id of the point',
    name       String,
    kind       LowCardinality(String) COMMENT 'declared type; empty where every sample brings its own',
    unit       LowCardinality(String),
    version    UInt64,
    is_deleted UInt8 DEFAULT 0
)
ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY point
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS devices (
    tenant     LowCardinality(String),
    device     String COMMENT 'id of the device',
    name       String,
    type       LowCardinality(String),
    version    UInt64,
    is_deleted UInt8 DEFAULT 0
)
ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY device
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- One row per value with its names, for Power BI, Grafana and people. Filter it by `tenant` and `ts`.
CREATE VIEW IF NOT EXISTS telemetry AS
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
SETTINGS do_not_merge_across_partitions_select_final = 1;
