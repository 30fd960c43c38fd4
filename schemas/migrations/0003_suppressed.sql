-- Samples that were dropped because they changed too little or nothing, counted: one row per series and minute of sample
-- time, so that "nothing changed" and "nothing came" can be told apart. Read it with FINAL. `last_ts`, `double`, `long` and
-- `text` are those of the last such sample when the row was written. While a minute lasts a row is written at each power of
-- two, so the count may be low by up to a half; the next sample of the series that is kept, or suppressed in a later minute,
-- brings it up to date. `text` is empty where the judge no longer had it. A row goes 400 days after its minute.
CREATE TABLE IF NOT EXISTS suppressed (
    tenant  LowCardinality(String) COMMENT 'who owns the series',
    series  UInt64 COMMENT 'id of (tenant, device, key); see table points',
    minute  DateTime64(0, 'UTC') CODEC(DoubleDelta, ZSTD(1)) COMMENT 'the minute of source time, its first second',
    last_ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)) COMMENT 'source time of the last suppressed sample',
    kind    Enum8('double' = 0, 'long' = 1, 'bool' = 2, 'string' = 3, 'json' = 4, 'date' = 5) COMMENT 'type of its value',
    double  Float64 CODEC(ZSTD(1)) COMMENT 'its value, of kind double',
    long    Int64 CODEC(T64, ZSTD(1)) COMMENT 'its value, of kind long, bool or date',
    text    String CODEC(ZSTD(1)) COMMENT 'its value, of kind string or json; may be empty',
    quality Nullable(Int32) CODEC(ZSTD(1)) COMMENT 'its quality; NULL where none came',
    count   UInt64 CODEC(ZSTD(1)) COMMENT 'samples suppressed in that minute; the highest wins',
    -- The engine takes any number for a time or an Enum, and could not show the row afterwards.
    CONSTRAINT time_is_storable CHECK last_ts >= toDateTime64('1970-01-01 00:00:00', 3, 'UTC')
                                  AND last_ts < toDateTime64('2262-01-01 00:00:00', 3, 'UTC'),
    CONSTRAINT kind_is_known CHECK toInt8(kind) BETWEEN 0 AND 5
)
ENGINE = ReplacingMergeTree(count)
ORDER BY (tenant, series, minute)
TTL toDateTime(least(minute, toDateTime64('2100-01-01 00:00:00', 0, 'UTC'))) + INTERVAL 400 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
