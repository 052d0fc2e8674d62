-- A watch reads its own org's changes.
CREATE INDEX changes_org ON changes (org_id, revision);

-- What an instance says it has applied, until when its watch counts as live (0:
-- it has none), and the data folder that it runs from ('': it did not tell).
ALTER TABLE instances ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN watching BIGINT NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN folder TEXT NOT NULL DEFAULT '';
