-- Alerts that are done with: told to their trigger's webhook, given up, or of a trigger that is gone. What stands here is not told
-- again. Read it with FINAL.
CREATE TABLE IF NOT EXISTS webhooks (
    id       String COMMENT 'of the alert: topic, lane, position and rule; the receiver sees it as webhook-id',
    tenant   LowCardinality(String),
    trigger  String COMMENT 'id of the trigger',
    at       DateTime64(3, 'UTC') COMMENT 'when it was done with',
    attempts UInt32 COMMENT 'calls since the last start of the process',
    outcome  LowCardinality(String) COMMENT 'delivered, dead (see table refused) or skipped'
)
ENGINE = ReplacingMergeTree(at)
ORDER BY id
TTL toDateTime(at) + INTERVAL 90 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
