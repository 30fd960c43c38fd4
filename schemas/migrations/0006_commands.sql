-- Commands: values that shall be written to points, and how far that has come. Read it with FINAL: the row that remains is
-- the last state. That a command was not delivered in time is no record; `outcome` says it by the time of the query,
-- five seconds after `expires` (DELIVERY_MS of services/domain/commands.py): an outcome on its way does not take it back.
CREATE TABLE IF NOT EXISTS commands (
    at      DateTime64(3, 'UTC') COMMENT 'when it was asked for',
    tenant  LowCardinality(String),
    device  String COMMENT 'id of the device that is to get it',
    point   String COMMENT 'id of the point',
    series  UInt64 COMMENT 'of the point; see table points',
    command String COMMENT 'unique id of the command',
    kind    LowCardinality(String) COMMENT 'double, long, bool, string, json or date',
    value   String COMMENT 'numbers and booleans as JSON has them, a date in UTC ms, a text as it is',
    subject String COMMENT 'who asked: the id of a key, a user',
    expires DateTime64(3, 'UTC') COMMENT 'from then on nobody begins to deliver it',
    state   LowCardinality(String) COMMENT 'queued, delivered or confirmed',
    changed DateTime64(3, 'UTC') COMMENT 'since when it is in this state',
    version UInt64 COMMENT 'the furthest state wins, of two records of one the first',
    outcome String ALIAS if(state = 'queued' AND expires + INTERVAL 5 SECOND <= now64(3), 'expired', state) COMMENT 'the state, or expired; not part of SELECT *'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant, series, at, command)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
