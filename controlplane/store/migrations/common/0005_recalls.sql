-- Which turn last had all who hold a lease told of a counter (0: none did), and when:
-- every process over the database reads on from the last one that it told.
ALTER TABLE counters ADD COLUMN told BIGINT NOT NULL DEFAULT 0;
ALTER TABLE counters ADD COLUMN told_at BIGINT NOT NULL DEFAULT 0;
CREATE INDEX counters_told ON counters (told) WHERE told > 0;
