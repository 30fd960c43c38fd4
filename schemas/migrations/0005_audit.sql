-- Control calls: who had what done. A call is written before and after it is done; the row that remains says how it ended, and
-- 'unknown' where nobody could tell. Read it with FINAL.
CREATE TABLE IF NOT EXISTS audit (
    at        DateTime64(3, 'UTC') COMMENT 'when it was asked for',
    tenant    LowCardinality(String) COMMENT 'empty where it is about the installation',
    subject   String COMMENT 'who: a user, the id of a key, the owner of a process',
    via       LowCardinality(String) COMMENT 'http, socket, command or process',
    action    LowCardinality(String),
    target    String COMMENT 'kind/id of what it was done to, as far as known',
    arguments String COMMENT 'JSON, without secrets',
    outcome   LowCardinality(String) COMMENT 'done, refused or unknown',
    detail    String COMMENT 'why it was refused, or why its end is unknown',
    call      String COMMENT 'unique id of the call',
    version   UInt64 COMMENT 'offset of the record; the last one of a call wins'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (at, call)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
